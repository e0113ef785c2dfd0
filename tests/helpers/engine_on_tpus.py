"""The engine's programs, compiled for TPUs that are not here.

Run as a program: libtpu asks the environment for its host, once in a process.
"""

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

import launch.compile  # noqa: F401  it sets that environment
from ling_jax import spec
from ling_jax.compile.topology import describe
from ling_jax.config import model_config
from ling_jax.engine.device import lower_decode
from ling_jax.engine.memory import memory_for, plan_memory
from ling_jax.engine.request import MAX_STOP_IDS
from ling_jax.engine.step import FLOATS, INTEGERS, Slots, read_chunks, run_tiles
from ling_jax.engine.weights import serving_dtype
from ling_jax.model import model_spec
from ling_jax.model.cache import pool_spec
from ling_jax.parallel.sharding import make_mesh

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
# The heads and latents of the released flash model.
CONFIG = model_config(
    "ling-2.6-flash", num_layers=8, mtp_depth=0, hidden_size=1024, num_experts=16, num_expert_groups=8, top_groups=4,
    vocab_size=8192,
)  # fmt: skip
SLOTS, TILES, ROWS, PAGES = 64, 16, 64, 512


def main() -> None:
    for name in TOPOLOGIES:
        place = SingleDeviceSharding(describe(name)[0][0])

        def array(dtype, *shape, place=place):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf, array=array: array(serving_dtype(leaf, CONFIG), *leaf.shape),
            model_spec(CONFIG),
            is_leaf=lambda x: isinstance(x, spec.Leaf),
        )
        pool = jax.tree.map(
            lambda x, array=array: array(x.dtype, *x.shape), spec.abstract(pool_spec(CONFIG, states=80, pages=PAGES))
        )
        int32 = jnp.int32
        slots = Slots(
            array(int32, SLOTS, 128),
            array(int32, SLOTS, 1 + len(INTEGERS) + MAX_STOP_IDS),
            array(jnp.float32, SLOTS, len(FLOATS)),
        )
        rows, chunk = array(int32, 5, TILES, ROWS), array(int32, 1, 256)
        programs = {
            "run_tiles": run_tiles.lower(params, pool, rows, slots, array(int32, 2), CONFIG),
            "read_chunks": read_chunks.lower(params, pool, chunk, chunk, array(int32, 1, 128), array(int32, 1), CONFIG),
        }
        pool_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pool))
        for program, lowered in programs.items():
            memory = lowered.compile().memory_analysis()
            print(name, program, "in place", memory.alias_size_in_bytes / pool_bytes, flush=True)
    mesh = make_mesh({"data": 2, "expert": 2, "tensor": 2}, describe("v5e:2x4")[0])
    memory = lower_decode(CONFIG, mesh, SLOTS, 2048).compile().memory_analysis()
    plan = plan_memory(CONFIG, SLOTS, memory_for(CONFIG, slots=SLOTS, max_tokens=2048, mesh=mesh), mesh)
    print("v5e:2x4 step on a mesh in place", memory.alias_size_in_bytes / plan.total_bytes, flush=True)


if __name__ == "__main__":
    main()
