"""The check of the kernels at a run's start, compiled for TPUs that are not here.

Run as a program: libtpu asks the environment for its host, once in a process.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import launch.compile  # noqa: F401  it sets that environment
from ling_jax.compile.topology import describe
from pallas_kernels.lightning_attention.self_check import _errors


def main() -> None:
    for topology in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"):
        mesh = Mesh(np.array(describe(topology)[0][:1]), ("one",))
        there = jax.ShapeDtypeStruct((), "float32", sharding=NamedSharding(mesh, PartitionSpec()))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            text = jax.jit(lambda zero: (zero, _errors("tpu"))).lower(there).compile().as_text()
        print(topology, text.count("tpu_custom_call"), flush=True)


if __name__ == "__main__":
    main()
