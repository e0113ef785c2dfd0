"""Experts on a CPU: one expert after the other, its rows in tiles whose intermediate results stay in the CPU's cache.

Large tiles reach the speed of a large matmul; small ones waste few rows. The loops skip experts without rows. No array
[all rows, D] exists: on a CPU its memory traffic costs more than the arithmetic.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Measured on two cores: a 64-row matmul runs at half the speed of a 256-row one. From 64 rows on a row's bits are the
# same whatever the size; in smaller ones they differ, so that they would depend on what other rows choose. Where there
# are fewer tokens than that, no bits are promised, and each expert has a row or two.
TILE_SIZES, FEW_TOKENS, SMALL_TILE_SIZES = (256, 64), 64, (32, 8)


def tile_sizes(tokens: int) -> tuple[int, ...]:
    """Rows of the tiles for that many tokens, the largest first."""
    return TILE_SIZES if tokens >= FEW_TOKENS else SMALL_TILE_SIZES


def over_experts(
    loads_E: jax.Array, expert: Callable[..., Any], carry: Any, sizes: tuple[int, ...] = TILE_SIZES
) -> Any:
    """Folds `carry` through `expert(number, tiles, carry)` for each expert that has rows, in order.

    `tiles(body, carry)` folds `body((start, size), mask [size], carry)` over the expert's tiles. Each of the expert's
    rows is in exactly one mask; rows outside the mask belong to other experts.
    """
    first_E = jnp.cumsum(loads_E, dtype=jnp.int32) - loads_E
    with_rows = jnp.flatnonzero(loads_E, size=len(loads_E), fill_value=0).astype(jnp.int32)

    def step(i, carry):
        number = with_rows[i]

        def tiles(body, carry):
            return _over_tiles(first_E[number], loads_E[number], body, carry, sizes)

        return expert(number, tiles, carry)

    return jax.lax.fori_loop(0, jnp.sum(loads_E > 0), step, carry)


def _over_tiles(start, left, body, carry, sizes: tuple[int, ...]):
    for size in sizes:
        # The last tile of a size may be up to a quarter empty; the smallest size takes the rest.
        lack = size - 1 if size == sizes[-1] else size // 4
        count = (left + lack) // size

        def step(i, carry, size=size, start=start, left=left):
            return body((start + i * size, size), jnp.arange(size) < left - i * size, carry)

        carry = jax.lax.fori_loop(0, count, step, carry)
        done = jnp.minimum(count * size, left)
        start, left = start + done, left - done
    return carry


def forward(
    x_MD: jax.Array, weight_Mk: jax.Array, experts: Any, dispatch: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`experts.experts_ffn` on a CPU: (y [M, D] in x's dtype, gate and up activations [P + tile, F])."""
    width, wide, sizes = experts.gate.shape[2], _wide(x_MD), tile_sizes(len(x_MD))
    token_P, weight_P = padded_rows(weight_Mk, dispatch, sizes[0])

    def expert(number, tiles, carry):
        into_DF = jnp.concatenate([_pick(experts.gate, number), _pick(experts.up, number)], axis=1)
        down_FD = _pick(experts.down, number)

        def tile(rows, mask_C, carry):
            y_MD, gate_PF, up_PF = carry
            token_C = _rows(token_P, rows)
            gate_CF, up_CF = jnp.split(_take(x_MD, token_C) @ into_DF, 2, axis=1)
            y_CD = (jax.nn.silu(gate_CF) * up_CF) @ down_FD
            y_CD = y_CD * jnp.where(mask_C, _rows(weight_P, rows), 0)[:, None]
            y_MD = y_MD.at[token_C].add(y_CD.astype(wide), mode="promise_in_bounds")
            return y_MD, _put(gate_PF, gate_CF, rows, mask_C), _put(up_PF, up_CF, rows, mask_C)

        return tiles(tile, carry)

    empty_PF = jnp.zeros((len(token_P), width), x_MD.dtype)
    carry = (jnp.zeros(x_MD.shape, wide), empty_PF, empty_PF)
    y_MD, gate_PF, up_PF = over_experts(dispatch.loads, expert, carry, sizes)
    return y_MD.astype(x_MD.dtype), gate_PF, up_PF


def backward(
    x_MD: jax.Array,
    weight_Mk: jax.Array,
    experts: Any,
    dispatch: Any,
    gate_PF: jax.Array,
    up_PF: jax.Array,
    grad_MD: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
    """Gradients of x [M, D], weights [M, k] and experts."""
    wide, width = _wide(x_MD), experts.gate.shape[2]
    sizes = tile_sizes(len(x_MD))
    token_P, weight_P = padded_rows(weight_Mk, dispatch, sizes[0])

    def expert(number, tiles, carry):
        into_FD = jnp.concatenate([_transposed(_pick(experts.gate, number)), _transposed(_pick(experts.up, number))])
        down_DF = _transposed(_pick(experts.down, number))

        def tile(rows, mask_C, carry):
            grad_x_MD, grad_weight_P, grad_into_DF, grad_down_FD = carry
            token_C, weight_C1 = _rows(token_P, rows), jnp.where(mask_C, _rows(weight_P, rows), 0)[:, None]
            x_CD, grad_CD = _take(x_MD, token_C), _take(grad_MD, token_C)
            hidden_CF, grad_weight_C, *grads = swiglu_gradients(
                _rows(gate_PF, rows), _rows(up_PF, rows), grad_CD @ down_DF, weight_C1
            )
            grad_into_CF = jnp.concatenate(grads, axis=1)
            grad_x_MD = grad_x_MD.at[token_C].add((grad_into_CF @ into_FD).astype(wide), mode="promise_in_bounds")
            grad_into_DF += (_transposed(x_CD) @ grad_into_CF).astype(wide)
            grad_down_FD += (_transposed(hidden_CF * weight_C1) @ grad_CD).astype(wide)
            return grad_x_MD, _put(grad_weight_P, grad_weight_C, rows, mask_C), grad_into_DF, grad_down_FD

        *carry, grads = carry
        zeros = (jnp.zeros((x_MD.shape[1], 2 * width), wide), jnp.zeros((width, x_MD.shape[1]), wide))
        *carry, grad_into_DF, grad_down_FD = tiles(tile, (*carry, *zeros))
        news = (*jnp.split(grad_into_DF, 2, axis=1), grad_down_FD)
        grads = [a.at[number].set(new.astype(a.dtype)) for a, new in zip(grads, news, strict=True)]
        return *carry, grads

    carry = (jnp.zeros(x_MD.shape, wide), jnp.zeros(len(token_P), x_MD.dtype), [jnp.zeros_like(w) for w in experts])
    grad_x_MD, grad_weight_P, grads = over_experts(dispatch.loads, expert, carry, sizes)
    return grad_x_MD.astype(x_MD.dtype), grad_weight_P[dispatch.row_of_pair], type(experts)(*grads)


def swiglu_gradients(
    gate_CF: jax.Array, up_CF: jax.Array, back_CF: jax.Array, weight_C1: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Backward of weight · down(silu(gate) · up): (silu(gate) · up, gradients of weight [C], gate and up [C, F]).

    `back_CF` is the output's gradient times the transpose of `down`.
    """
    sigmoid_CF = jax.nn.sigmoid(gate_CF)
    silu_CF = gate_CF * sigmoid_CF
    hidden_CF, grad_hidden_CF = silu_CF * up_CF, back_CF * weight_C1
    slope_CF = sigmoid_CF * (1 + gate_CF * (1 - sigmoid_CF))
    grad_gate_CF, grad_up_CF = grad_hidden_CF * up_CF * slope_CF, grad_hidden_CF * silu_CF
    return hidden_CF, jnp.sum(hidden_CF * back_CF, axis=1), grad_gate_CF, grad_up_CF


def padded_rows(weight_Mk: jax.Array, dispatch: Any, extra: int) -> tuple[jax.Array, jax.Array]:
    """(token, weight) of each row, [P + extra] each, since the last tile may reach past row P.

    Rows without an expert here use the token of row 0: other tokens may hold undefined values.
    """
    token_P = jnp.pad(dispatch.pair_of_row // weight_Mk.shape[1], (0, extra))
    token_P = jnp.where(jnp.arange(len(token_P)) < jnp.sum(dispatch.loads), token_P, token_P[0])
    return token_P, jnp.pad(weight_Mk.reshape(-1)[dispatch.pair_of_row], (0, extra))


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _pick(w_EDF, expert):
    return jax.lax.dynamic_index_in_dim(w_EDF, expert, 0, keepdims=False)


def _rows(x_P, rows):
    return jax.lax.dynamic_slice_in_dim(x_P, *rows)


def _take(x_MD, token_C):
    return x_MD.at[token_C].get(mode="promise_in_bounds")


def _put(x_P, new_C, rows, mask_C):
    """The array with the tile's masked rows replaced; its other rows belong to other experts."""
    mask_C = mask_C.reshape(-1, *(1,) * (new_C.ndim - 1))
    return jax.lax.dynamic_update_slice_in_dim(x_P, jnp.where(mask_C, new_C, _rows(x_P, rows)), rows[0], 0)


def _transposed(x):
    """The transpose, copied in memory: XLA on a CPU multiplies by a transposed operand at half the speed."""
    return jax.lax.optimization_barrier(x.swapaxes(-1, -2))
