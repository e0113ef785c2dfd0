"""Weights get from a trainer's mesh to an engine's without being gathered, and the plan says what that costs."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ling_jax.config import model_config
from ling_jax.engine import moves
from ling_jax.engine.memory import MemoryPlan
from ling_jax.engine.reshard import ReshardPlan, engine_mesh, reshard, reshard_plan
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import AXIS_TYPES, MESH_AXES, shardings
from tests.helpers.engines import model_of
from tests.helpers.programs import output_of
from tests.helpers.tiny import random_params

HELPER = "tests.helpers.reshard_on_eight"
POOL = MemoryPlan(slots=64, states=16, pages=1001, state_bytes=10**6, page_bytes=10**6, max_length=4096, parts=8)
PLAN = ReshardPlan(2_100_000_000, 61_000_000_000, 11_000_000_000, POOL, 95e9)


class Place:
    """A device that is not here, of which only the number counts."""

    platform, process_index = "tpu", 0

    def __init__(self, id: int):
        self.id = id


def mesh_of(*shape: int) -> Mesh:
    places = np.array([Place(id) for id in range(int(np.prod(shape)))])
    return Mesh(places.reshape(shape), MESH_AXES, axis_types=AXIS_TYPES)


def checked(*arguments: str) -> None:
    """The collectives bring no more into a device than the plan says, and in all but few cases that."""
    lines = output_of(HELPER, *arguments).splitlines()
    assert lines
    for line in lines:
        planned, moved = map(int, line.split("bytes ")[1].split()[:2])
        own_order = "engine_mesh" in line and "tensor" not in line.split("to")[0]
        assert planned <= moved <= (planned if own_order else 1.2 * planned), line


def test_moved_weights_are_the_placed_ones_and_the_plan_is_exact():
    checked("fsdp4 expert2", "expert8")


@pytest.mark.slow
def test_all_pairs_of_meshes_move_weights_exactly():
    checked()


def test_an_engines_mesh_keeps_experts_and_heads_where_they_were():
    trainer = mesh_of(2, 4, 4, 1, 2)
    mesh = engine_mesh(trainer, {"data": 2, "expert": 16, "tensor": 2})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "expert": 16, "context": 1, "tensor": 2}
    place = {device.id: where for where, device in np.ndenumerate(mesh.devices)}
    for (data, _, expert, _, tensor), device in np.ndenumerate(trainer.devices):
        assert place[device.id][2] // 4 == expert and place[device.id][4] == tensor and place[device.id][0] == data
    with pytest.raises(ValueError, match="does not fill 64 devices"):
        engine_mesh(trainer, {"expert": 128})


def test_meshes_that_cut_devices_at_other_places_are_refused():
    with pytest.raises(ValueError, match="would have to be gathered whole; make it with `engine_mesh`"):
        moves.of_meshes(source := mesh_of(2, 1, 3, 1, 1), Mesh(source.devices.reshape(1, 1, 3, 1, 2), MESH_AXES))


def test_the_plan_of_a_pods_weights_is_exact_for_devices_that_are_absent():
    """The flash model from fsdp 16 x expert 16 to expert 64 x tensor 4: all experts are bfloat16 and leave."""
    config = model_config("ling-2.6-flash")
    trainer = mesh_of(1, 16, 16, 1, 1)
    plan = reshard_plan(config, trainer, engine_mesh(trainer, {"expert": 64, "tensor": 4}))
    assert plan.trainer_bytes == 2_414_219_264 and plan.weights_bytes == 2_481_992_704
    assert 0.9 * plan.weights_bytes < plan.moved_bytes < plan.weights_bytes


def test_a_plan_says_what_moves_and_what_fits():
    fits = dataclasses.replace(PLAN, trainer_bytes=61_000_000_000)
    assert (
        str(fits)
        == "weights to the engine: 2.10 GB into each device, 61.00 GB of trainer + 12.02 GB of engine of 95.00 GB"
    )
    fits.check()


def test_a_trainer_on_other_devices_takes_no_memory_of_the_engines():
    apart = dataclasses.replace(PLAN, trainer_bytes=94_000_000_000, apart=True)
    assert "94.00 GB of trainer, on others 12.02 GB of engine of 95.00 GB" in str(apart)
    apart.check()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (22_500_000_000, r"517.00 MB too many; memory_bytes 500000000 would do, with slots 24 for contexts as long"),
        (24_000_000_000, ": 2.02 GB too many; an engine with tensor or expert twice as large halves its weights"),
    ],
)
def test_an_engine_that_does_not_fit_beside_its_trainer_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAN, trainer_bytes=61_000_000_000 + more - PLAN.weights_bytes).check()


def test_weights_of_no_mesh_are_placed_and_damaged_ones_refused():
    config, params, _ = model_of()
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1, 1), MESH_AXES)
    placed = reshard(params, config, mesh)
    assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(placed))
    bad = random_params(config, dtype="float32")
    bad["final_norm"] = bad["final_norm"] * np.nan
    with pytest.raises(ValueError, match="weight final_norm has a value that is not finite"):
        reshard(bad, config, mesh)
    with pytest.raises(ValueError, match="weight embed has shape"):
        reshard(params | {"embed": params["embed"][1:]}, config, mesh)


def test_weights_on_the_engines_own_mesh_are_copied():
    """The trainer's next step uses its arrays up."""
    config, params, _ = model_of()
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1, 1), MESH_AXES)
    own = jax.device_put(params, shardings(model_spec(config), mesh))
    copy = reshard(own, config, mesh)
    for leaf in jax.tree.leaves(own):
        leaf.delete()
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(copy))
