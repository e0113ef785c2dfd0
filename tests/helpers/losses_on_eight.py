"""Log-probabilities on meshes of eight simulated devices, compared with the plain form. Run as a program: the number of
devices is fixed when JAX starts."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ling_jax.model.loss import token_logps_and_entropies
from ling_jax.parallel.sharding import make_mesh, partition_spec, token_axes
from pallas_kernels.hlo_bytes import ARRAY, computations
from tests.helpers.eight_devices import MESHES

# Rows and lengths that all axes split, that no chunk and no `context` splits, and fewer rows than devices.
SHAPES, CHUNK = ((8, 32), (8, 19), (2, 19)), 5
SPLIT_VOCABULARY = [{"expert": 8}, {"data": 2, "expert": 4}, {"fsdp": 2, "expert": 2, "tensor": 2}]


def case(shape, width: int, vocab: int):
    """(hidden states, head, targets of which some are ignored, a gradient for each log-probability)."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, vocab, shape)
    targets[0, 3:9] = targets[1, -1] = -100
    return rng.normal(size=(*shape, width)), rng.normal(size=(width, vocab)), targets, rng.normal(size=shape)


def plain(hidden_BTD, head_DW, targets_BT, _):
    logps_BTW = jax.nn.log_softmax(hidden_BTD @ head_DW)
    counts_BT = targets_BT != -100
    picked_BT = jnp.take_along_axis(logps_BTW, jnp.maximum(targets_BT, 0)[..., None], axis=-1)[..., 0]
    entropies_BT = -jnp.sum(jnp.exp(logps_BTW) * logps_BTW, axis=-1)
    return jnp.where(counts_BT, picked_BT, 0), jnp.where(counts_BT, entropies_BT, 0)


def gradients_of(function):
    """A function of a case: (gradients of hidden states and head, (log-probabilities, entropies))."""

    def weighted(hidden, head, targets, weights):
        logps, entropies = function(hidden, head, targets, CHUNK)
        without_gradient = 1e3 * jnp.sum(entropies) if function is token_logps_and_entropies else 0
        return jnp.sum(weights * logps) + without_gradient, (logps, entropies)

    return jax.jit(jax.grad(weighted, (0, 1), has_aux=True))


def placed(arrays, mesh):
    tokens = NamedSharding(mesh, PartitionSpec(*token_axes(arrays[2].shape)))
    stored = NamedSharding(mesh, partition_spec(("embed", "vocab")))
    return tuple(jax.device_put(arrays, (tokens, stored, tokens, tokens)))


def check_equal() -> None:
    found, wanted = gradients_of(token_logps_and_entropies), gradients_of(plain)
    for shape in SHAPES:
        arrays = case(shape, width=16, vocab=48)
        expected = jax.device_get(wanted(*arrays))
        for sizes in (*MESHES, {"tensor": 8}):
            with jax.set_mesh(mesh := make_mesh(sizes)):
                results = found(*placed(arrays, mesh))
            for value, exact in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
                # Sums of up to 256 terms of size ~10 in float64.
                np.testing.assert_allclose(value, exact, rtol=0, atol=1e-11, err_msg=str((shape, sizes)))
            print("equal", shape, sizes, flush=True)


def array_shapes(text: str) -> set[tuple[int, ...]]:
    """The shapes of all arrays in the text of a compiled program."""
    found = (ARRAY.findall(op.shape) for part in computations(text).values() for op in part.values())
    return {tuple(map(int, dims.split(","))) for arrays in found for _, dims, _ in arrays if dims}


def check_compiled() -> None:
    """In the program of the gradients no device has the whole head, and none has more logits than those of a chunk."""
    rows, length, width, vocab = 8, 95, 40, 1040
    arrays = case((rows, length), width, vocab)
    for sizes in SPLIT_VOCABULARY:
        with jax.set_mesh(mesh := make_mesh(sizes)):
            program = gradients_of(token_logps_and_entropies).lower(*placed(arrays, mesh)).compile()
        shapes = array_shapes(program.as_text())
        tensor = sizes.get("tensor", 1)
        part, rows_there = vocab // (sizes["expert"] * tensor), rows * tensor // 8 * sizes["expert"]
        assert not any({width, vocab} <= set(shape) for shape in shapes), sizes
        assert max(map(math.prod, shapes)) == max(rows_there * CHUNK, width) * part, sizes
        print("split", sizes, flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    {"equal": check_equal, "compiled": check_compiled}[sys.argv[1]]()
