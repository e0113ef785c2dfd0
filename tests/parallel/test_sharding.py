"""Meshes and shardings say what does not fit, and a sharded model computes the same."""

import subprocess
import sys
import textwrap

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from ling_jax import spec
from ling_jax.config import model_config
from ling_jax.model import model_spec
from ling_jax.parallel import sharding
from tests.tiny import tiny_config


def abstract_mesh(**sizes):
    return AbstractMesh(
        tuple(sizes.get(axis, 1) for axis in sharding.MESH_AXES),
        sharding.MESH_AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(sharding.MESH_AXES),
    )


def test_a_mesh_has_all_axes():
    assert dict(sharding.make_mesh().shape) == {"data": len(jax.devices()), **dict.fromkeys(sharding.MESH_AXES[1:], 1)}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"datta": 1}, "mesh axis 'datta' is unknown; the axes are data, fsdp, expert, context, tensor"),
        ({"data": 1 + len(jax.devices())}, "does not fill"),
        ({"data": -1, "fsdp": -1}, "one axis may be -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_an_error(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(sizes)


def test_every_axis_of_every_parameter_is_in_the_table():
    leaves = spec.named_leaves(model_spec(model_config("ling-2.6-1t")))
    named = {axis for leaf in leaves.values() for axis in leaf.axes if axis}
    assert named == sharding.RULES.keys() - {"batch", "kv_heads"}  # MLA has no key/value heads


def test_the_released_model_splits_over_256_devices():
    config = model_config("ling-2.6-1t")
    placed = sharding.shardings(model_spec(config), abstract_mesh(fsdp=8, expert=16, tensor=2))
    experts = placed["segments"]["1"]["0_lightning_moe"]["ffn"]["experts"]["gate"]
    assert experts.spec == PartitionSpec(None, None, ("expert",), ("fsdp",), ("tensor",))
    leaves = spec.named_leaves(model_spec(config))
    largest = max(
        placed.shard_shape(leaves[name].shape)[-1] * placed.shard_shape(leaves[name].shape)[-2]
        for name, placed in spec.named_leaves(placed).items()
        if len(leaves[name].shape) > 1
    )
    assert largest <= 157184 // 2 * 8192 // 8  # no matrix is left whole


def test_a_dimension_that_cannot_be_split_is_named():
    with pytest.raises(ValueError, match=r"parameter .*: axis 'experts' of size 8 cannot be split 3 ways"):
        sharding.shardings(model_spec(tiny_config()), abstract_mesh(expert=3))


SHARDED = """
    import jax
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    import numpy as np
    from ling_jax import model
    from ling_jax.model import model_spec
    from ling_jax.parallel.sharding import batch_sharding, make_mesh, shardings
    from tests.golden_numbers import quick_jit
    from tests.tiny import random_params, tiny_config

    config = tiny_config(mtp_depth=1, compute_dtype="float64")
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (8, 12))
    step = quick_jit(jax.value_and_grad(lambda p, t, s: model.loss(p, t, t, config, segment_ids=s)[0]))
    segment_ids = np.repeat([[1], [1], [2], [0]], 2, axis=0) * np.ones((8, 12), int)
    wanted, wanted_grads = jax.device_get(step(params, tokens, segment_ids))
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2})
    placed = jax.device_put(params, shardings(model_spec(config), mesh))
    batch = jax.device_put((tokens, segment_ids), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        found, grads = step(placed, *batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    for value, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10)
    print("equal on", len(jax.devices()))
"""


@pytest.mark.slow
def test_a_sharded_model_has_the_same_loss_and_gradients():
    """A process of its own: the number of devices is fixed when JAX starts."""
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(SHARDED)], capture_output=True, text=True)
    assert "equal on 8" in run.stdout, run.stderr
