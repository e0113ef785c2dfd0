"""Meshes and shardings say what does not fit, and a sharded model computes the same."""

import types

import jax
import pytest
from jax.sharding import PartitionSpec

from ling_jax import spec
from ling_jax.config import model_config
from ling_jax.model import model_spec
from ling_jax.model.mla import mla_spec
from ling_jax.parallel import sharding
from ling_jax.parallel.sharding import abstract_mesh
from tests.helpers.programs import output_of
from tests.helpers.tiny import tiny_config


def test_a_mesh_has_all_axes():
    assert dict(sharding.make_mesh().shape) == {"data": len(jax.devices()), **dict.fromkeys(sharding.MESH_AXES[1:], 1)}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"datta": 1}, "mesh axis 'datta' is unknown; the axes are data, fsdp, expert, context, tensor"),
        ({"data": 1 + len(jax.devices())}, "does not fill"),
        ({"data": -1, "fsdp": -1}, "one axis may be -1"),
        ({"fsdp": 0}, "mesh axis 'fsdp' has size 0; expected at least 1, or -1"),
        ({"data": -2, "fsdp": -1}, "mesh axis 'data' has size -2"),
    ],
)
def test_a_mesh_that_does_not_fit_is_an_error(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(sizes)


def test_slices_are_split_along_data():
    slices = [types.SimpleNamespace(platform="tpu", slice_index=number // 2) for number in range(4)]
    hosts = [types.SimpleNamespace(platform="gpu", slice_index=number) for number in range(4)]
    assert (sharding.slices_of(slices), sharding.slices_of(hosts), sharding.slices_of(jax.devices())) == (2, 1, 1)
    with pytest.raises(ValueError, match="'data' has size 1; the devices are 2 slices, and it must split them"):
        sharding.make_mesh({"fsdp": 4}, slices)


def test_every_axis_of_every_parameter_is_in_the_table():
    leaves = spec.named_leaves(model_spec(model_config("ling-2.6-1t")))
    named = {axis for leaf in leaves.values() for axis in leaf.axes if axis}
    assert named == sharding.RULES.keys() - {"batch", "tokens", "kv_heads"}  # MLA has no key/value heads


def test_the_released_model_splits_over_256_devices():
    config = model_config("ling-2.6-1t")
    placed = sharding.shardings(model_spec(config), abstract_mesh(fsdp=8, expert=16, tensor=2))
    experts = placed["segments"]["1"]["0_lightning_moe"]["ffn"]["experts"]["gate"]
    assert experts.spec == PartitionSpec(None, None, ("expert",), ("fsdp", "context"), ("tensor",))
    leaves = spec.named_leaves(model_spec(config))
    largest = max(
        placed.shard_shape(leaves[name].shape)[-1] * placed.shard_shape(leaves[name].shape)[-2]
        for name, placed in spec.named_leaves(placed).items()
        if len(leaves[name].shape) > 1
    )
    assert largest <= 157184 // 2 * 8192 // 8  # no matrix is left whole


def test_a_dimension_that_cannot_be_split_is_named():
    with pytest.raises(ValueError, match=r"parameter .*: axis 'experts' of size 8 cannot be split 3 ways"):
        sharding.shardings(model_spec(tiny_config(vocab_size=42)), abstract_mesh(expert=3))


def test_mla_ranks_are_split_where_the_mesh_divides_them_and_whole_elsewhere():
    def parts(config, **mesh):
        placed = sharding.shardings(mla_spec(config), abstract_mesh(**mesh))
        return {name: placed[name].shard_shape(leaf.shape)[0] for name, leaf in mla_spec(config).items()}

    assert parts(model_config("ling-2.6-1t"), fsdp=128, expert=8)["q_b"] == 1536 // 128
    assert parts(model_config("ling-2.6-1t"), fsdp=16, context=8)["kv_b"] == 512 // 128
    tiny = parts(tiny_config(q_lora_rank=12, kv_lora_rank=8), fsdp=8)
    assert (tiny["q_b"], tiny["kv_b"]) == (12, 1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["2.6", "linear-2.0", "2.0"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(family, dtype):
    assert len(output_of("tests.helpers.eight_devices", family, dtype).splitlines()) == 11


@pytest.mark.slow
def test_lightning_kernels_on_a_mesh_equal_one_device():
    assert output_of("tests.helpers.lightning_on_four") == "equal\n"


@pytest.mark.slow
def test_a_state_saved_on_one_mesh_goes_on_alike_on_others():
    assert len(output_of("tests.helpers.eight_devices", "restore").splitlines()) == 5


@pytest.mark.slow
def test_a_stored_model_starts_with_its_own_values_on_every_mesh():
    assert len(output_of("tests.helpers.eight_devices", "start").splitlines()) == 2


@pytest.mark.slow
def test_log_probabilities_of_split_rows_equal_those_of_whole_ones():
    assert len(output_of("tests.helpers.eight_devices", "logps").splitlines()) == 2


@pytest.mark.slow
def test_the_embedding_is_looked_up_alike_on_every_mesh():
    assert len(output_of("tests.helpers.eight_devices", "lookup").splitlines()) == 11
