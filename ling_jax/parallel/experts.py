"""Dropless experts: rows sorted by expert, each expert's SwiGLU on its own rows, weighted sums back (docs §8).

One function with its own gradient and two forms: `ragged_dot` on accelerators, tiles on CPUs (`expert_tiles`), where
XLA would compute a ragged_dot as E full matmuls. The number of rows is static, so nothing is ever dropped.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ling_jax.parallel import expert_tiles


class Dispatch(NamedTuple):
    """Where the (token, choice) pairs stand among the P = M·k rows sorted by expert."""

    row_of_pair: jax.Array  # [M, k]
    pair_of_row: jax.Array  # [P]
    loads: jax.Array  # [E] rows of each expert


class Experts(NamedTuple):
    """SwiGLU matrices of all experts."""

    gate: jax.Array  # [E, D, F]
    up: jax.Array  # [E, D, F]
    down: jax.Array  # [E, F, D]


def plan_dispatch(expert_index, num_experts: int) -> Dispatch:
    """Sorts the pairs by expert; expert_index [M, k] integers."""
    flat = expert_index.reshape(-1).astype(jnp.int32)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    rows = jnp.arange(flat.size, dtype=jnp.int32)
    return Dispatch(
        row_of_pair=jnp.zeros_like(flat).at[order].set(rows).reshape(expert_index.shape),
        pair_of_row=order,
        loads=jnp.zeros(num_experts, jnp.int32).at[flat].add(1),
    )


def count_drops(dispatch: Dispatch):
    """Pairs that have no row of their own, and rows that belong to no expert: 0, or there is a bug."""
    pairs = dispatch.pair_of_row.size
    found = dispatch.pair_of_row[dispatch.row_of_pair.reshape(-1)]
    return jnp.sum(found != jnp.arange(pairs)) + jnp.abs(pairs - jnp.sum(dispatch.loads))


@jax.custom_vjp
def experts_ffn(x_MD, weight_Mk, experts: Experts, dispatch: Dispatch):
    """[M, D]: Σ over a token's choices of weight · SwiGLU of the chosen expert."""
    return _forward(x_MD, weight_Mk, experts, dispatch)[0]


def _experts_fwd(x_MD, weight_Mk, experts, dispatch):
    y_MD, *hidden = _forward(x_MD, weight_Mk, experts, dispatch)
    return y_MD, (x_MD, weight_Mk, experts, dispatch, hidden)


def _experts_bwd(residuals, grad_MD):
    x_MD, weight_Mk, experts, dispatch, hidden = residuals
    arguments = (x_MD, weight_Mk, experts, dispatch, *hidden, grad_MD)
    grads = jax.lax.platform_dependent(*arguments, cpu=expert_tiles.backward, default=_ragged_backward)
    return *grads, None


experts_ffn.defvjp(_experts_fwd, _experts_bwd)


def _forward(x_MD, weight_Mk, experts: Experts, dispatch: Dispatch):
    """(y [M, D], what the gates and ups gave [P, F] each: kept for the gradient)."""
    arguments = (x_MD, weight_Mk, experts, dispatch)
    return jax.lax.platform_dependent(*arguments, cpu=expert_tiles.forward, default=_ragged_forward)


def _ragged_forward(x_MD, weight_Mk, experts: Experts, dispatch: Dispatch):
    choices, loads = weight_Mk.shape[1], dispatch.loads
    x_PD = x_MD[dispatch.pair_of_row // choices]
    gate_PF, up_PF = (jax.lax.ragged_dot(x_PD, w_EDF, loads) for w_EDF in (experts.gate, experts.up))
    y_PD = jax.lax.ragged_dot(jax.nn.silu(gate_PF) * up_PF, experts.down, loads)
    return jnp.einsum("MkD,Mk->MD", y_PD[dispatch.row_of_pair], weight_Mk), gate_PF, up_PF


def _ragged_backward(x_MD, weight_Mk, experts: Experts, dispatch: Dispatch, gate_PF, up_PF, grad_MD):
    choices, loads = weight_Mk.shape[1], dispatch.loads
    token_of_row = dispatch.pair_of_row // choices
    x_PD, grad_PD = x_MD[token_of_row], grad_MD[token_of_row]
    weight_P1 = weight_Mk.reshape(-1)[dispatch.pair_of_row][:, None]
    back_PF = jax.lax.ragged_dot(grad_PD, experts.down.swapaxes(1, 2), loads)
    hidden_PF, grad_weight_P, grad_gate_PF, grad_up_PF = expert_tiles.swiglu_gradients(
        gate_PF, up_PF, back_PF, weight_P1
    )
    grad_x_PD = jax.lax.ragged_dot(grad_gate_PF, experts.gate.swapaxes(1, 2), loads)
    grad_x_PD += jax.lax.ragged_dot(grad_up_PF, experts.up.swapaxes(1, 2), loads)
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    pairs = ((x_PD, grad_gate_PF), (x_PD, grad_up_PF), (hidden_PF * weight_P1, grad_PD))
    grads = Experts(*(jax.lax.ragged_dot_general(a, b, loads, numbers) for a, b in pairs))
    # Every pair has one row, so scatters are gathers.
    return grad_x_PD[dispatch.row_of_pair].sum(axis=1), grad_weight_P[dispatch.row_of_pair], grads
