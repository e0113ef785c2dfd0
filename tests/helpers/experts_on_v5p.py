"""Experts, compiled for four v5p chips that are not here: which kernels are in the program with their gradients, and
what runs while tokens are on their way to them and back.

Run as a program: libtpu asks the environment for its host, once in a process.
"""

import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

import launch.compile  # noqa: F401  it sets that environment
from ling_jax.compile.topology import describe
from ling_jax.config import model_config
from ling_jax.model import moe
from ling_jax.parallel.exchange import compiler_options
from ling_jax.parallel.experts import Experts, expert_parallel
from ling_jax.parallel.sharding import batch_sharding, make_mesh, partition_spec
from ling_jax.spec import tree_map
from pallas_kernels.hlo_bytes import computations

MESHES = [{"expert": 4}, {"fsdp": 2, "tensor": 2}, {"data": 4}]
ROWS, LENGTH, CHOICES, EXPERTS, WIDTH, FFN = 4, 1000, 3, 12, 512, 256


def total(x_BTD, weight_BTk, experts, index_BTk, live_BT):
    y_BTD, _ = expert_parallel(x_BTD, weight_BTk, index_BTk, live_BT, experts)
    return jnp.sum(jnp.square(y_BTD.astype(jnp.float32)))


def array(mesh, *shape, axes=None, dtype=jnp.bfloat16):
    sharding = NamedSharding(mesh, partition_spec(axes)) if axes else batch_sharding(mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def gradient_text(mesh) -> str:
    into = array(mesh, EXPERTS, WIDTH, FFN, axes=("experts", "embed", "ffn"))
    out = array(mesh, EXPERTS, FFN, WIDTH, axes=("experts", "ffn", "embed"))
    weights, index = (array(mesh, ROWS, LENGTH, CHOICES, dtype=dtype) for dtype in (jnp.bfloat16, jnp.int32))
    x_BTD, live_BT = array(mesh, ROWS, LENGTH, WIDTH), array(mesh, ROWS, LENGTH, dtype=bool)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(total, (0, 1, 2)))
        return step.lower(x_BTD, weights, Experts(into, into, out), index, live_BT).compile().as_text()


def layer_text(mesh) -> str:
    """Of a whole layer of flash, with its shared expert, and its gradients: forward, forward again, backward."""
    config = model_config("ling-2.6-flash")
    params = tree_map(lambda leaf: array(mesh, *leaf.shape, axes=leaf.axes), moe.moe_spec(config))
    x_BTD, live_BT = array(mesh, ROWS, 4096, config.hidden_size), array(mesh, ROWS, 4096, dtype=bool)

    def squares(params, x_BTD, live_BT):
        layer = jax.checkpoint(lambda params, x_BTD: moe.moe(params, x_BTD, live_BT, config)[0])
        return jnp.sum(jnp.square(layer(params, x_BTD).astype(jnp.float32)))

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(squares, (0, 1)), compiler_options=compiler_options(mesh))
        return step.lower(params, x_BTD, live_BT).compile().as_text()


def beside_exchanges(program) -> tuple[int, int]:
    """(exchanges, products of the shared expert between the start and the end of one), in the order of the schedule."""
    exchanges = under_way = products = 0
    for op in program.values():
        exchanges += op.kind == "ragged-all-to-all-start"
        under_way += (op.kind == "ragged-all-to-all-start") - (op.kind == "ragged-all-to-all-done")
        is_product = op.kind == "convolution" or "kind=kOutput" in op.attributes
        products += bool(under_way and is_product and "shared_expert" in op.attributes)
    return exchanges, products


def main() -> None:
    devices = describe("v5p:2x2x1")[0]
    for sizes in MESHES:
        text = gradient_text(make_mesh(sizes, devices))
        found = set(re.findall(r"grouped_rows|grouped_columns|ragged-all-to-all", text))
        print(*sizes, *sorted(found), flush=True)
    exchanges, products = beside_exchanges(computations(layer_text(make_mesh(MESHES[0], devices)))["ENTRY"])
    print(f"exchanges {exchanges}, products of the shared expert beside them {products}")


if __name__ == "__main__":
    main()
