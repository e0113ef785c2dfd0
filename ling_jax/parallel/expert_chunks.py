"""Experts on accelerators: chunks of rows with grouped matmuls in each (docs/architecture.md §8).

A device may receive the rows of every device on its expert axis, or none. A chunk holds the even share, and the loop
ends after the last received row, so time and memory follow the number of rows. Backward recomputes gate and up
activations: storing them would need memory for the worst case, and remat recomputes the layer anyway.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ling_jax.parallel.expert_tiles import padded_rows, swiglu_gradients
from pallas_kernels.grouped_matmul import TILES, add_grouped_outer_tpu, grouped_matmul_tpu, suits_tpu
from pallas_kernels.platform import platform


def forward(x_MD: jax.Array, weight_Mk: jax.Array, experts: Any, dispatch: Any, share: int) -> jax.Array:
    """`experts.experts_ffn` on an accelerator, [M, D] in x's dtype."""
    chunk, wide = _chunk_rows(weight_Mk.size, share), _wide(x_MD)
    token_P, weight_P = padded_rows(weight_Mk, dispatch, chunk)

    def step(number, y_MD):
        start, sizes_E, live_R1 = _chunk(dispatch.loads, number, chunk)
        token_R = _rows(token_P, start, chunk)
        x_RD = x_MD[token_R]
        gate_RF, up_RF = (grouped_matmul(x_RD, w_EDF, sizes_E) for w_EDF in (experts.gate, experts.up))
        y_RD = grouped_matmul(jax.nn.silu(gate_RF) * up_RF, experts.down, sizes_E)
        y_RD = jnp.where(live_R1, y_RD * _rows(weight_P, start, chunk)[:, None], 0)
        return y_MD.at[token_R].add(y_RD.astype(wide))

    return _over_chunks(dispatch.loads, chunk, step, jnp.zeros(x_MD.shape, wide)).astype(x_MD.dtype)


def backward(
    x_MD: jax.Array, weight_Mk: jax.Array, experts: Any, dispatch: Any, grad_MD: jax.Array, share: int
) -> tuple[jax.Array, jax.Array, Any]:
    """Gradients of x [M, D], weights [M, k] and experts."""
    chunk, wide = _chunk_rows(weight_Mk.size, share), _wide(x_MD)
    token_P, weight_P = padded_rows(weight_Mk, dispatch, chunk)

    def step(number, carry):
        grad_x_MD, grad_weight_P, grads = carry
        start, sizes_E, live_R1 = _chunk(dispatch.loads, number, chunk)
        token_R, weight_R1 = _rows(token_P, start, chunk), _rows(weight_P, start, chunk)[:, None]
        x_RD, grad_RD = x_MD[token_R], grad_MD[token_R]
        gate_RF, up_RF = (grouped_matmul(x_RD, w_EDF, sizes_E) for w_EDF in (experts.gate, experts.up))
        back_RF = grouped_matmul(grad_RD, experts.down, sizes_E, transposed=True)
        # Rows after the last group are uninitialised memory.
        gate_RF, up_RF, back_RF = (jnp.where(live_R1, a, 0) for a in (gate_RF, up_RF, back_RF))
        hidden_RF, grad_weight_R, grad_gate_RF, grad_up_RF = swiglu_gradients(gate_RF, up_RF, back_RF, weight_R1)
        grad_x_RD = grouped_matmul(grad_gate_RF, experts.gate, sizes_E, transposed=True)
        grad_x_RD += grouped_matmul(grad_up_RF, experts.up, sizes_E, transposed=True)
        pairs = ((x_RD, grad_gate_RF), (x_RD, grad_up_RF), (hidden_RF * weight_R1, grad_RD))
        grads = [add_grouped_outer(old, *pair, sizes_E) for old, pair in zip(grads, pairs, strict=True)]
        grad_x_MD = grad_x_MD.at[token_R].add(jnp.where(live_R1, grad_x_RD, 0).astype(wide))
        return grad_x_MD, jax.lax.dynamic_update_slice_in_dim(grad_weight_P, grad_weight_R, start, 0), grads

    carry = (jnp.zeros(x_MD.shape, wide), jnp.zeros(len(token_P), x_MD.dtype), [jnp.zeros_like(w) for w in experts])
    grad_x_MD, grad_weight_P, grads = _over_chunks(dispatch.loads, chunk, step, carry)
    return grad_x_MD.astype(x_MD.dtype), grad_weight_P[dispatch.row_of_pair], type(experts)(*grads)


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, transposed: bool = False) -> jax.Array:
    """The rows of each group times its matrix (or its transpose), [R, F]; rows of no group are undefined.

    x [R, D], w [E, D, F] ([E, F, D] if `transposed`), sizes [E] int32.
    """
    if _kernels_suit(x_RD, w_EDF):
        return grouped_matmul_tpu(x_RD, w_EDF, sizes_E, transposed=transposed)
    w_EDF = w_EDF.swapaxes(1, 2) if transposed else w_EDF
    return x_RD @ w_EDF[0] if len(w_EDF) == 1 else jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)


def add_grouped_outer(total_EDF: jax.Array, x_RD: jax.Array, y_RF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """total [E, D, F] + x^T y over the rows of each group; x [R, D], y [R, F], sizes [E] int32."""
    if _kernels_suit(x_RD, total_EDF):
        return add_grouped_outer_tpu(total_EDF, x_RD, y_RF, sizes_E)
    if len(sizes_E) == 1:  # the TPU compiler fails on a ragged_dot with one group
        x_RD, y_RF = (jnp.where((jnp.arange(len(a)) < sizes_E)[:, None], a, 0) for a in (x_RD, y_RF))
        return total_EDF + x_RD.T @ y_RF
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return total_EDF + jax.lax.ragged_dot_general(x_RD, y_RF, sizes_E, numbers)


def _kernels_suit(x_RD, w_EDF) -> bool:
    """Whether the Pallas kernels run. On a TPU XLA would compute an outer product of all rows for every group."""
    return platform() == "tpu" and suits_tpu(x_RD.dtype, len(x_RD), *w_EDF.shape[1:])


def _chunk_rows(rows: int, share: int) -> int:
    """Rows of a chunk: whole tiles that hold an even share of `rows`."""
    tile = TILES[0] if rows >= share * TILES[0] else TILES[-1]
    return -(-rows // (share * tile)) * tile


def _over_chunks(loads_E, chunk: int, step, carry):
    return jax.lax.fori_loop(0, (jnp.sum(loads_E) + chunk - 1) // chunk, step, carry)


def _chunk(loads_E, number, chunk: int):
    """(first row, rows of each group in the chunk [E], whether a row belongs to a group [R, 1])."""
    start, ends_E = number * chunk, jnp.cumsum(loads_E, dtype=jnp.int32)
    within_E = jnp.clip(ends_E - start, 0, chunk)
    live_R1 = (jnp.arange(chunk) < within_E[-1])[:, None]
    return start, jnp.diff(within_E, prepend=0), live_R1


def _rows(x_P, start, size: int):
    return jax.lax.dynamic_slice_in_dim(x_P, start, size)


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)
