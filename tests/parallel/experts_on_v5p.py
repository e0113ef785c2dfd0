"""Experts and their gradients, compiled for four v5p chips that are not here: which kernels are in the program.

Run as a program: libtpu asks the environment for its host, once in a process.
"""

import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

import launch.compile  # noqa: F401  it sets that environment
from ling_jax.compile.topology import describe
from ling_jax.parallel.experts import Experts, expert_parallel
from ling_jax.parallel.sharding import batch_sharding, make_mesh, partition_spec

MESHES = [{"expert": 4}, {"fsdp": 2, "tensor": 2}, {"data": 4}]
ROWS, LENGTH, CHOICES, EXPERTS, WIDTH, FFN = 4, 1000, 3, 12, 512, 256


def total(x_BTD, weight_BTk, experts, index_BTk, live_BT):
    y_BTD, _ = expert_parallel(x_BTD, weight_BTk, index_BTk, live_BT, experts)
    return jnp.sum(jnp.square(y_BTD.astype(jnp.float32)))


def main() -> None:
    for sizes in MESHES:
        mesh = make_mesh(sizes, describe("v5p:2x2x1")[0])

        def array(*shape, axes=None, dtype=jnp.bfloat16, mesh=mesh):
            sharding = NamedSharding(mesh, partition_spec(axes)) if axes else batch_sharding(mesh)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        into = array(EXPERTS, WIDTH, FFN, axes=("experts", "embed", "ffn"))
        out = array(EXPERTS, FFN, WIDTH, axes=("experts", "ffn", "embed"))
        chosen = array(ROWS, LENGTH, CHOICES), array(ROWS, LENGTH, CHOICES, dtype=jnp.int32)
        x_BTD, live_BT = array(ROWS, LENGTH, WIDTH), array(ROWS, LENGTH, dtype=bool)
        with jax.set_mesh(mesh):
            step = jax.jit(jax.grad(total, (0, 1, 2)))
            text = step.lower(x_BTD, chosen[0], Experts(into, into, out), chosen[1], live_BT).compile().as_text()
        print(*sizes, *sorted(set(re.findall(r"grouped_(?:rows|columns)", text))), flush=True)


if __name__ == "__main__":
    main()
