"""Weights of a trainer on eight simulated devices to engines' meshes. Run as a program."""

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

TRAINERS = {"fsdp": 8}, {"fsdp": 4, "expert": 2}, {"context": 2, "fsdp": 4}, {"data": 2, "expert": 2, "tensor": 2}
ENGINES = {"data": 8}, {"expert": 8}, {"data": 4, "tensor": 2}, {"data": 2, "expert": 2, "tensor": 2}


def main(trainers, engines) -> None:
    config = tiny_config(num_heads=4, num_kv_heads=4, mtp_depth=1, compute_dtype="bfloat16")
    params = random_params(config, dtype="float32")
    wanted = {name: np.asarray(x) for name, x in named_leaves(serving_copy(params, config)).items()}
    for sizes in trainers:
        trainer = make_mesh(sizes)
        placed = jax.device_put(params, shardings(model_spec(config), trainer))
        for of_engine in engines:
            for mesh in (make_mesh(of_engine), engine_mesh(trainer, of_engine)):
                found = named_leaves(reshard(placed, config, mesh))
                assert found.keys() == wanted.keys()
                for name, x in found.items():
                    assert x.dtype == wanted[name].dtype and x.sharding.mesh == mesh, name
                    np.testing.assert_array_equal(np.asarray(x), wanted[name], name)
                    for shard in x.addressable_shards:
                        np.testing.assert_array_equal(np.asarray(shard.data), wanted[name][shard.index], name)
                plan = reshard_plan(config, trainer, mesh)
                work = read_work(lower_reshard(config, trainer, mesh).compile().as_text(), dict(trainer.shape))
                kinds = sorted({collective.kind for collective in work.collectives})
                print(sizes, of_engine, "bytes", plan.moved_bytes, work.collective_bytes, *kinds, flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(TRAINERS[: int(sys.argv[1])], ENGINES)
