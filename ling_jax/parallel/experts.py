"""Dropless dispatch of tokens to experts: rows sorted by expert, grouped matmuls, weighted sum back.

Each expert's rows start at a multiple of a block of rows, so that a block has one expert. The number of rows is
static: enough for any loads, so nothing is ever dropped.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Dispatch(NamedTuple):
    """Where the (token, choice) pairs stand among the P sorted rows; M tokens, k choices, E experts."""

    row_of_pair: jax.Array  # [M, k]
    pair_of_row: jax.Array  # [P], M·k for rows of no pair
    rows_of_expert: jax.Array  # [E] rows with the padding to whole blocks
    expert_of_block: jax.Array  # [P / block]


def block_rows(num_pairs: int, num_experts: int) -> int:
    """Rows of a block: our choice, half of an even share, as a power of two in 8..128."""
    share = max(num_pairs // (2 * num_experts), 1)
    return min(max(2 ** (share.bit_length() - 1), 8), 128)


def plan_dispatch(expert_index, num_experts: int) -> Dispatch:
    """Sorts the pairs by expert; expert_index [M, k] integers."""
    pairs = expert_index.size
    block = block_rows(pairs, num_experts)
    num_blocks = -(-pairs // block) + num_experts
    flat = expert_index.reshape(-1).astype(jnp.int32)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    loads = jnp.zeros(num_experts, jnp.int32).at[flat].add(1)
    blocks = -(-loads // block)
    ends = jnp.cumsum(blocks, dtype=jnp.int32)
    # Row of the n-th pair in sorted order: its expert's first row + its rank among the expert's pairs.
    rank = jnp.arange(pairs, dtype=jnp.int32) - (jnp.cumsum(loads, dtype=jnp.int32) - loads)[flat[order]]
    row = (ends - blocks)[flat[order]] * block + rank
    expert_of_block = jnp.searchsorted(ends, jnp.arange(num_blocks), side="right").astype(jnp.int32)
    return Dispatch(
        row_of_pair=jnp.zeros(pairs, jnp.int32).at[order].set(row).reshape(expert_index.shape),
        pair_of_row=jnp.full(num_blocks * block, pairs, jnp.int32).at[row].set(order),
        rows_of_expert=blocks * block,
        expert_of_block=jnp.minimum(expert_of_block, num_experts - 1),
    )


def count_drops(dispatch: Dispatch):
    """Pairs that have no row of their own: 0, or there is a bug."""
    pairs = dispatch.row_of_pair.size
    found = dispatch.pair_of_row[dispatch.row_of_pair.reshape(-1)]
    return jnp.sum(found != jnp.arange(pairs))


@jax.custom_vjp
def gather_rows(x_MD, dispatch: Dispatch):
    """[P, D]: each row's token, zeros in rows of no pair."""
    choices = dispatch.row_of_pair.shape[1]
    return x_MD.at[dispatch.pair_of_row // choices].get(mode="fill", fill_value=0)


def _gather_rows_fwd(x_MD, dispatch):
    return gather_rows(x_MD, dispatch), dispatch


def _gather_rows_bwd(dispatch, grad_PD):
    # Every pair has one row, so the scatter-add is a gather and a sum over choices.
    return grad_PD[dispatch.row_of_pair].sum(axis=1), None


gather_rows.defvjp(_gather_rows_fwd, _gather_rows_bwd)


@jax.custom_vjp
def weighted_sum(y_PD, weight_Mk, dispatch: Dispatch):
    """[M, D]: Σ over a token's choices of weight · the pair's row."""
    return jnp.einsum("MkD,Mk->MD", y_PD[dispatch.row_of_pair], weight_Mk)


def _weighted_sum_fwd(y_PD, weight_Mk, dispatch):
    return weighted_sum(y_PD, weight_Mk, dispatch), (y_PD, weight_Mk, dispatch)


def _weighted_sum_bwd(residuals, grad_MD):
    y_PD, weight_Mk, dispatch = residuals
    choices = weight_Mk.shape[1]
    pair = dispatch.pair_of_row
    weight_P = weight_Mk.reshape(-1).at[pair].get(mode="fill", fill_value=0)
    grad_y_PD = grad_MD.at[pair // choices].get(mode="fill", fill_value=0) * weight_P[:, None]
    return grad_y_PD, jnp.einsum("MkD,MD->Mk", y_PD[dispatch.row_of_pair], grad_MD), None


weighted_sum.defvjp(_weighted_sum_fwd, _weighted_sum_bwd)


@jax.custom_vjp
def grouped_matmul(x_PD, w_EDF, dispatch: Dispatch):
    """[P, F]: each row times its expert's matrix."""
    return _rows_times_experts(x_PD, w_EDF, dispatch)


def _grouped_matmul_fwd(x_PD, w_EDF, dispatch):
    return grouped_matmul(x_PD, w_EDF, dispatch), (x_PD, w_EDF, dispatch)


def _grouped_matmul_bwd(residuals, grad_PF):
    x_PD, w_EDF, dispatch = residuals
    grad_x_PD = _rows_times_experts(grad_PF, w_EDF.swapaxes(1, 2), dispatch)
    return grad_x_PD, _expert_gradients(x_PD, grad_PF, dispatch), None


grouped_matmul.defvjp(_grouped_matmul_fwd, _grouped_matmul_bwd)


def _rows_times_experts(x_PD, w_EDF, dispatch: Dispatch):
    return jax.lax.platform_dependent(
        x_PD, w_EDF, dispatch, cpu=_rows_times_experts_blocks, default=_rows_times_experts_ragged
    )


def _expert_gradients(x_PD, grad_PF, dispatch: Dispatch):
    return jax.lax.platform_dependent(
        x_PD, grad_PF, dispatch, cpu=_expert_gradients_blocks, default=_expert_gradients_ragged
    )


def _rows_times_experts_ragged(x_PD, w_EDF, dispatch: Dispatch):
    return jax.lax.ragged_dot(x_PD, w_EDF, dispatch.rows_of_expert)


def _expert_gradients_ragged(x_PD, grad_PF, dispatch: Dispatch):
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return jax.lax.ragged_dot_general(x_PD, grad_PF, dispatch.rows_of_expert, numbers)


def _blocks(x_PD, dispatch: Dispatch):
    return x_PD.reshape(dispatch.expert_of_block.shape[0], -1, x_PD.shape[-1])


def _rows_times_experts_blocks(x_PD, w_EDF, dispatch: Dispatch):
    """A loop over blocks. XLA on CPU computes a ragged_dot as E full matmuls, 40 times the useful work."""

    def block(_, inputs):
        x_CD, expert = inputs
        return None, x_CD @ jax.lax.dynamic_index_in_dim(w_EDF, expert, 0, keepdims=False)

    _, y = jax.lax.scan(block, None, (_blocks(x_PD, dispatch), dispatch.expert_of_block))
    return y.reshape(x_PD.shape[0], -1)


def _expert_gradients_blocks(x_PD, grad_PF, dispatch: Dispatch):
    num_experts = dispatch.rows_of_expert.shape[0]

    def block(grad_EDF, inputs):
        x_CD, grad_CF, expert = inputs
        grad_DF = jax.lax.dynamic_index_in_dim(grad_EDF, expert, 0, keepdims=False) + x_CD.T @ grad_CF
        return jax.lax.dynamic_update_index_in_dim(grad_EDF, grad_DF, expert, 0), None

    zeros = jnp.zeros((num_experts, x_PD.shape[-1], grad_PF.shape[-1]), x_PD.dtype)
    inputs = (_blocks(x_PD, dispatch), _blocks(grad_PF, dispatch), dispatch.expert_of_block)
    grad_EDF, _ = jax.lax.scan(block, zeros, inputs)
    return grad_EDF
