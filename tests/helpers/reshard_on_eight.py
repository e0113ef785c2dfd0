"""Weights of a trainer on eight simulated devices to engines' meshes. Run as a program."""

import itertools
import sys

import jax
import numpy as np

from ling_jax.compile.hlo import read_work
from ling_jax.engine.reshard import engine_mesh, lower_reshard, reshard, reshard_plan
from ling_jax.engine.weights import serving_copy
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import make_mesh, shardings
from ling_jax.spec import named_leaves
from tests.helpers.tiny import random_params, tiny_config

TRAINERS = {
    "fsdp8": {"fsdp": 8},
    "fsdp4 expert2": {"fsdp": 4, "expert": 2},
    "context2 fsdp4": {"context": 2, "fsdp": 4},
    "data2 expert2 tensor2": {"data": 2, "expert": 2, "tensor": 2},
}
ENGINES = {
    "data8": {"data": 8},
    "expert8": {"expert": 8},
    "data4 tensor2": {"data": 4, "tensor": 2},
    "data2 expert2 tensor2": {"data": 2, "expert": 2, "tensor": 2},
}

FOUR = ({"fsdp": 4}, {"fsdp": 2, "expert": 2})  # of the first devices
OTHER_FOUR = ({"data": 4}, {"expert": 4}, {"expert": 2, "tensor": 2})  # of the last


def main(trainers, engines) -> None:
    config = tiny_config(num_heads=4, num_kv_heads=4, mtp_depth=1, compute_dtype="bfloat16")
    params = random_params(config, dtype="float32")
    wanted = {name: np.asarray(x) for name, x in named_leaves(serving_copy(params, config)).items()}
    for name in trainers:
        trainer = make_mesh(TRAINERS[name])
        placed = jax.device_put(params, shardings(model_spec(config), trainer))
        for other in engines:
            for make in (engine_mesh, lambda _, sizes: make_mesh(sizes)):
                mesh = make(trainer, ENGINES[other])
                check(reshard(placed, config, mesh), wanted, mesh)
                plan = reshard_plan(config, trainer, mesh)
                work = read_work(lower_reshard(config, trainer, mesh).compile().as_text(), dict(trainer.shape))
                order = "engine_mesh" if make is engine_mesh else "make_mesh"
                print(name, "to", other, order, "bytes", plan.moved_bytes, work.collective_bytes, flush=True)
    for sizes, other in itertools.product(FOUR, OTHER_FOUR):
        trainer, mesh = make_mesh(sizes, jax.devices()[:4]), make_mesh(other, jax.devices()[4:])
        placed = jax.device_put(params, shardings(model_spec(config), trainer))
        with jax.transfer_guard_device_to_host("disallow_explicit"):
            moved = reshard(placed, config, mesh)
        check(moved, wanted, mesh)
        plan = reshard_plan(config, trainer, mesh)
        assert plan.apart and plan.moved_bytes == plan.weights_bytes


def check(params, wanted, mesh) -> None:
    """Every device has its part of the very values."""
    found = named_leaves(params)
    assert found.keys() == wanted.keys()
    for name, x in found.items():
        assert x.dtype == wanted[name].dtype and x.sharding.mesh == mesh, name
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), wanted[name][shard.index], name)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(sys.argv[1:2] or TRAINERS, sys.argv[2:3] or ENGINES)
