"""Experts on accelerators: the rows that there are in chunks of one size, grouped matmuls inside each (docs §8).

A device may get the rows of all devices of its expert axis, or none. Chunks of the even share keep what is computed
and what is held in step with the rows that came: the loop ends after the last one. What the gates and ups gave is
computed again for the gradient: there would have to be room for it on a device that gets all rows, and a layer that is
computed again in backward (remat) would compute it a second time anyway.
"""

import jax
import jax.numpy as jnp

from ling_jax.parallel.expert_tiles import padded_rows, swiglu_gradients
from pallas_kernels.grouped_matmul import TILES, add_grouped_outer_tpu, grouped_matmul_tpu, suits_tpu
from pallas_kernels.platform import platform


def forward(x_MD, weight_Mk, experts, dispatch, share: int):
    """y [M, D]; see `experts.experts_ffn`."""
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


def backward(x_MD, weight_Mk, experts, dispatch, grad_MD, share: int):
    """Gradients of x, weights and experts."""
    chunk, wide = _chunk_rows(weight_Mk.size, share), _wide(x_MD)
    token_P, weight_P = padded_rows(weight_Mk, dispatch, chunk)

    def step(number, carry):
        grad_x_MD, grad_weight_P, grads = carry
        start, sizes_E, live_R1 = _chunk(dispatch.loads, number, chunk)
        token_R, weight_R1 = _rows(token_P, start, chunk), _rows(weight_P, start, chunk)[:, None]
        x_RD, grad_RD = x_MD[token_R], grad_MD[token_R]
        gate_RF, up_RF = (grouped_matmul(x_RD, w_EDF, sizes_E) for w_EDF in (experts.gate, experts.up))
        back_RF = grouped_matmul(grad_RD, experts.down, sizes_E, transposed=True)
        # Rows behind the last group are whatever was in memory.
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


def grouped_matmul(x_RD, w_EDF, sizes_E, *, transposed: bool = False):
    """[R, F]: the rows of each group times its matrix, or its transpose; what is in rows of no group is undefined."""
    if _kernels_suit(x_RD, w_EDF):
        return grouped_matmul_tpu(x_RD, w_EDF, sizes_E, transposed=transposed)
    w_EDF = w_EDF.swapaxes(1, 2) if transposed else w_EDF
    return x_RD @ w_EDF[0] if len(w_EDF) == 1 else jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)


def add_grouped_outer(total_EDF, x_RD, y_RF, sizes_E):
    """[E, D, F]: the total plus, for each group, the transpose of its rows of x times those of y."""
    if _kernels_suit(x_RD, total_EDF):
        return add_grouped_outer_tpu(total_EDF, x_RD, y_RF, sizes_E)
    if len(sizes_E) == 1:  # the TPU's compiler fails on a ragged_dot of one group
        x_RD, y_RF = (jnp.where((jnp.arange(len(a)) < sizes_E)[:, None], a, 0) for a in (x_RD, y_RF))
        return total_EDF + x_RD.T @ y_RF
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return total_EDF + jax.lax.ragged_dot_general(x_RD, y_RF, sizes_E, numbers)


def _kernels_suit(x_RD, w_EDF) -> bool:
    """XLA has no grouped outer product on a TPU: it would compute one of all rows for every group."""
    return platform() == "tpu" and suits_tpu(x_RD.dtype, len(x_RD), *w_EDF.shape[1:])


def _chunk_rows(rows: int, share: int) -> int:
    """Whole tiles that hold an even share."""
    tile = TILES[0] if rows >= share * TILES[0] else TILES[-1]
    return -(-rows // (share * tile)) * tile


def _over_chunks(loads_E, chunk: int, step, carry):
    return jax.lax.fori_loop(0, (jnp.sum(loads_E) + chunk - 1) // chunk, step, carry)


def _chunk(loads_E, number, chunk: int):
    """(first row, rows of each group in the chunk, which rows of it are anyone's)."""
    start, ends_E = number * chunk, jnp.cumsum(loads_E, dtype=jnp.int32)
    within_E = jnp.clip(ends_E - start, 0, chunk)
    live_R1 = (jnp.arange(chunk) < within_E[-1])[:, None]
    return start, jnp.diff(within_E, prepend=0), live_R1


def _rows(x_P, start, size: int):
    return jax.lax.dynamic_slice_in_dim(x_P, start, size)


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)
