"""Softmax attention and its gradients, compiled for TPUs that are not here.

Run as a program: libtpu asks the environment for its host, once in a process.
"""

import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

import launch.compile  # noqa: F401  it sets that environment
from ling_jax.compile.topology import describe
from ling_jax.model.attention import softmax_attention
from ling_jax.parallel import context
from ling_jax.parallel.sharding import make_mesh, partition_spec

ROWS, HEADS, KEY_DIM, VALUE_DIM = 8, 8, 192, 128
CASES = (
    ({"fsdp": -1}, 4096, HEADS, "bfloat16"),
    ({"data": -1, "tensor": 2}, 4096, HEADS, "bfloat16"),
    ({"data": -1, "context": 4}, 4096, HEADS, "bfloat16"),
    ({"fsdp": -1}, 32768, 2, "bfloat16"),
    ({"fsdp": -1}, 4096, 2, "float32"),
)
TOPOLOGIES = {"v5e:2x2": 1, "v5p:2x2x1": 5, "v6e:2x2": 5, "tpu7x:2x2x1": 3}  # and how many of the cases
MANY_ROWS = 2048  # on four devices: the scalars of all fit in their memory


def gradients(q, k, v, docs):
    def total(q, k, v):
        if jax.sharding.get_abstract_mesh().shape["context"] > 1:
            kv_axes = ((k.shape[2], "kv_heads"),)
            out = context.attention(lambda _, kv: kv, (), (), q, (k, v), kv_axes, docs, 0.1)
        else:
            out = softmax_attention(q, k, v, docs, 0.1)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    return jax.grad(total, (0, 1, 2))(q, k, v)


def kernels(mesh, length: int, groups: int, dtype, rows: int = ROWS) -> dict[str, int]:
    """{name: how often it is in the program}."""

    def array(*shape, axes, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, partition_spec(axes)))

    tokens = ("batch", "tokens")
    q = array(rows, length, HEADS, KEY_DIM, axes=(*tokens, "heads", None))
    k, v = (array(rows, length, groups, dim, axes=(*tokens, "kv_heads", None)) for dim in (KEY_DIM, VALUE_DIM))
    docs = array(rows, length, axes=("batch", None), dtype=jnp.int32)
    with jax.set_mesh(mesh):
        text = jax.jit(gradients).lower(q, k, v, docs).compile().as_text()
    names = re.findall(r"%(softmax_(?:forward|backward))\S* = ", text)
    return {name: names.count(name) for name in sorted(set(names))}


def main() -> None:
    for topology, count in TOPOLOGIES.items():
        devices = describe(topology)[0]
        for sizes, length, groups, dtype in CASES[:count]:
            found = kernels(make_mesh(sizes, devices), length, groups, dtype)
            print(topology, sizes, length, dtype, *(f"{name} {count}" for name, count in found.items()), flush=True)
    devices = describe("v5e:2x2")[0]
    with jax.default_matmul_precision("highest"):  # which products of bfloat16 do not have
        found = kernels(make_mesh({"fsdp": -1}, devices), 512, HEADS, "bfloat16", MANY_ROWS)
    print("many rows", *(f"{name} {count}" for name, count in found.items()), flush=True)


if __name__ == "__main__":
    main()
