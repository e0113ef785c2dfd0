"""Experts on a CPU: a loop over tiles of sorted rows, everything between a tile's tokens and their sums in cache.

An expert's rows are cut into tiles of three sizes: large ones run at the speed of a large matmul, small ones waste few
rows. The loops end after the tiles that there are, so that empty ones cost nothing. No array of all rows times D is
ever made: on a CPU its memory costs more than the arithmetic.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

TILE_SIZES = (256, 128, 64)  # measured on two cores: a 64-row matmul runs at half the speed of a 256-row one


class Tiles(NamedTuple):
    """Tiles of one size; the first `count` are there."""

    expert: jax.Array  # [n]
    start: jax.Array  # [n] first row
    rows: jax.Array  # [n] rows of the expert in the tile; what follows belongs to others
    count: jax.Array


def plan_tiles(loads_E, num_rows: int) -> list[Tiles]:
    """Tiles of each size that together have every row once."""
    left_E, start_E = loads_E, jnp.cumsum(loads_E, dtype=jnp.int32) - loads_E
    plan = []
    for size, smallest in zip(TILE_SIZES, [False, False, True], strict=True):
        # The last tile of a size may lack up to a quarter; the smallest takes what is left.
        tiles_E = (left_E + (size - 1 if smallest else size // 4)) // size
        ends_E = jnp.cumsum(tiles_E, dtype=jnp.int32)
        number = jnp.arange(-(-num_rows // size) + len(loads_E), dtype=jnp.int32)
        expert = jnp.minimum(jnp.searchsorted(ends_E, number, side="right"), len(loads_E) - 1).astype(jnp.int32)
        done = (number - (ends_E - tiles_E)[expert]) * size
        plan.append(Tiles(expert, start_E[expert] + done, jnp.clip(left_E[expert] - done, 0, size), ends_E[-1]))
        used_E = jnp.minimum(tiles_E * size, left_E)
        left_E, start_E = left_E - used_E, start_E + used_E
    return plan


def _over_tiles(loads_E, num_rows: int, body, carry):
    """`body(expert, slice of rows, mask of rows [C], carry)` for every tile."""
    for size, tiles in zip(TILE_SIZES, plan_tiles(loads_E, num_rows), strict=True):

        def step(i, carry, size=size, tiles=tiles):
            mask_C = jnp.arange(size) < tiles.rows[i]
            return body(tiles.expert[i], (tiles.start[i], size), mask_C, carry)

        carry = jax.lax.fori_loop(0, tiles.count, step, carry)
    return carry


def forward(x_MD, weight_Mk, experts, dispatch):
    """(y [M, D], what the gates and ups gave [P, F] each)."""
    width, wide = experts.gate.shape[2], _wide(x_MD)
    token_P, weight_P = _padded_rows(weight_Mk, dispatch)

    def tile(expert, rows, mask_C, carry):
        y_MD, gate_PF, up_PF = carry
        token_C = _rows(token_P, rows)
        into_DF = jnp.concatenate([_pick(experts.gate, expert), _pick(experts.up, expert)], axis=1)
        gate_CF, up_CF = jnp.split(_take(x_MD, token_C) @ into_DF, 2, axis=1)
        y_CD = (jax.nn.silu(gate_CF) * up_CF) @ _pick(experts.down, expert)
        y_CD = y_CD * jnp.where(mask_C, _rows(weight_P, rows), 0)[:, None]
        y_MD = y_MD.at[token_C].add(y_CD.astype(wide), mode="promise_in_bounds")
        return y_MD, _put(gate_PF, gate_CF, rows, mask_C), _put(up_PF, up_CF, rows, mask_C)

    empty_PF = jnp.zeros((len(token_P), width), x_MD.dtype)
    carry = (jnp.zeros(x_MD.shape, wide), empty_PF, empty_PF)
    y_MD, gate_PF, up_PF = _over_tiles(dispatch.loads, weight_Mk.size, tile, carry)
    return y_MD.astype(x_MD.dtype), gate_PF[: weight_Mk.size], up_PF[: weight_Mk.size]


def backward(x_MD, weight_Mk, experts, dispatch, gate_PF, up_PF, grad_MD):
    """Gradients of x, weights and experts."""
    wide = _wide(x_MD)
    token_P, weight_P = _padded_rows(weight_Mk, dispatch)
    gate_PF, up_PF = (jnp.pad(a, ((0, TILE_SIZES[0]), (0, 0))) for a in (gate_PF, up_PF))
    gate_EFD, up_EFD, down_EDF = (_transposed(w) for w in experts)

    def tile(expert, rows, mask_C, carry):
        grad_x_MD, grad_weight_P, grad_experts = carry
        token_C, weight_C1 = _rows(token_P, rows), jnp.where(mask_C, _rows(weight_P, rows), 0)[:, None]
        x_CD, grad_CD = _take(x_MD, token_C), _take(grad_MD, token_C)
        back_CF = grad_CD @ _pick(down_EDF, expert)
        hidden_CF, grad_weight_C, *grad_into = swiglu_gradients(
            _rows(gate_PF, rows), _rows(up_PF, rows), back_CF, weight_C1
        )
        grad_into_CF = jnp.concatenate(grad_into, axis=1)
        into_FD = jnp.concatenate([_pick(gate_EFD, expert), _pick(up_EFD, expert)], axis=0)
        grad_x_MD = grad_x_MD.at[token_C].add((grad_into_CF @ into_FD).astype(wide), mode="promise_in_bounds")
        grad_gate_DF, grad_up_DF = jnp.split(_transposed(x_CD) @ grad_into_CF, 2, axis=1)
        grad_down_FD = _transposed(hidden_CF * weight_C1) @ grad_CD
        grad_weight_P = _put(grad_weight_P, grad_weight_C, rows, mask_C)
        news = (grad_gate_DF, grad_up_DF, grad_down_FD)
        grad_experts = [_add(a, new, expert) for a, new in zip(grad_experts, news, strict=True)]
        return grad_x_MD, grad_weight_P, grad_experts

    zeros = [jnp.zeros(w.shape, _wide(w)) for w in experts]
    carry = (jnp.zeros(x_MD.shape, wide), jnp.zeros(len(token_P), x_MD.dtype), zeros)
    grad_x_MD, grad_weight_P, grad_experts = _over_tiles(dispatch.loads, weight_Mk.size, tile, carry)
    grads = type(experts)(*(grad.astype(w.dtype) for grad, w in zip(grad_experts, experts, strict=True)))
    return grad_x_MD.astype(x_MD.dtype), grad_weight_P[dispatch.row_of_pair], grads


def swiglu_gradients(gate_CF, up_CF, back_CF, weight_C1):
    """(silu(gate) · up, gradients of the weight [C], the gate and the up) of weight · down(silu(gate) · up).

    `back` is the gradient of the output times `down` transposed.
    """
    sigmoid_CF = jax.nn.sigmoid(gate_CF)
    silu_CF = gate_CF * sigmoid_CF
    hidden_CF, grad_hidden_CF = silu_CF * up_CF, back_CF * weight_C1
    slope_CF = sigmoid_CF * (1 + gate_CF * (1 - sigmoid_CF))
    grad_gate_CF, grad_up_CF = grad_hidden_CF * up_CF * slope_CF, grad_hidden_CF * silu_CF
    return hidden_CF, jnp.sum(hidden_CF * back_CF, axis=1), grad_gate_CF, grad_up_CF


def _padded_rows(weight_Mk, dispatch):
    """(token [P + tile], weight [P + tile]) of each row: a tile may reach behind the last one."""
    behind = (0, TILE_SIZES[0])
    token_P = dispatch.pair_of_row // weight_Mk.shape[1]
    return jnp.pad(token_P, behind), jnp.pad(weight_Mk.reshape(-1)[dispatch.pair_of_row], behind)


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _pick(w_EDF, expert):
    return jax.lax.dynamic_index_in_dim(w_EDF, expert, 0, keepdims=False)


def _rows(x_P, rows):
    return jax.lax.dynamic_slice_in_dim(x_P, *rows)


def _take(x_MD, token_C):
    return x_MD.at[token_C].get(mode="promise_in_bounds")


def _put(x_P, new_C, rows, mask_C):
    """The array with a tile's own rows; what follows them belongs to others."""
    mask_C = mask_C.reshape(-1, *(1,) * (new_C.ndim - 1))
    return jax.lax.dynamic_update_slice_in_dim(x_P, jnp.where(mask_C, new_C, _rows(x_P, rows)), rows[0], 0)


def _add(total_EDF, new_DF, expert):
    new_DF = _pick(total_EDF, expert) + new_DF.astype(total_EDF.dtype)
    return jax.lax.dynamic_update_index_in_dim(total_EDF, new_DF, expert, 0)


def _transposed(x):
    """Transposed in memory: XLA on CPU multiplies by a transposed operand at half the speed."""
    return jax.lax.optimization_barrier(x.swapaxes(-1, -2))
