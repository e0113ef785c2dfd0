"""Dropless experts: rows sorted by expert, each expert's SwiGLU on its own rows, weighted sums back (docs §8).

One function with its own gradient and two forms: chunks of grouped matmuls on accelerators (`expert_chunks`), tiles on
CPUs (`expert_tiles`), where XLA would compute a ragged_dot as E full matmuls. The number of rows is static, so nothing
is ever dropped. `expert_parallel` runs it where the experts lie.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ling_jax.parallel import exchange, expert_chunks, expert_tiles
from ling_jax.parallel.sharding import RULES, one_device, partition_spec, token_axes, ways
from pallas_kernels.platform import platform

COUNTED = 512  # pairs: sums of so many ones are exact in any matmul


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


def plan_dispatch(expert_index, num_experts: int, first: int | jax.Array = 0) -> Dispatch:
    """Sorts the pairs by expert, from `first` on; those of experts elsewhere come last and are in no load.

    expert_index [M, k] integers.
    """
    flat = expert_index.reshape(-1).astype(jnp.int32) - first
    flat = jnp.where((flat >= 0) & (flat < num_experts), flat, num_experts)
    pairs = jnp.arange(flat.size, dtype=jnp.int32)
    if platform() == "cpu":
        order = jnp.argsort(flat, stable=True).astype(jnp.int32)
        row_of_pair = jnp.zeros_like(flat).at[order].set(pairs)
        loads_E = jnp.zeros(num_experts, jnp.int32).at[flat].add(1, mode="drop")
    else:
        row_of_pair, loads_E = counted_rows(flat, num_experts)
        order = jnp.zeros_like(flat).at[row_of_pair].set(pairs, unique_indices=True)
    return Dispatch(row_of_pair.reshape(expert_index.shape), order, loads_E)


def counted_rows(expert_P, num_experts: int):
    """(the row of each pair in a stable sort by expert, rows of each expert); `num_experts` stands for all others.

    Matmuls with a triangle count who came before: a TPU sorts slowly, and its compiler takes long over it.
    """
    block = min(COUNTED, len(expert_P))
    expert_NC = jnp.pad(expert_P, (0, -len(expert_P) % block), constant_values=num_experts).reshape(-1, block)
    chosen_NCE = expert_NC[..., None] == jnp.arange(num_experts + 1)
    before_CS = np.tri(block, k=-1, dtype=np.float32)
    within_NCE = jnp.einsum("CS,NSE->NCE", before_CS, chosen_NCE.astype(jnp.float32)).astype(jnp.int32)
    loads_NE = chosen_NCE.sum(axis=1, dtype=jnp.int32)
    loads_E = loads_NE.sum(axis=0)
    first_NE = jnp.cumsum(loads_NE, axis=0) - loads_NE + jnp.cumsum(loads_E) - loads_E
    row_NC = jnp.sum(jnp.where(chosen_NCE, within_NCE + first_NE[:, None], 0), axis=2)
    return row_NC.reshape(-1)[: len(expert_P)], loads_E[:num_experts]


def count_drops(dispatch: Dispatch, wanted=None):
    """Pairs that have no row of their own, and the loads' distance from the pairs `wanted` (None: all): 0, or there is
    a bug."""
    pairs = dispatch.pair_of_row.size
    found = dispatch.pair_of_row[dispatch.row_of_pair.reshape(-1)]
    wanted = pairs if wanted is None else wanted
    return jnp.sum(found != jnp.arange(pairs)) + jnp.abs(wanted - jnp.sum(dispatch.loads))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def experts_ffn(x_MD, weight_Mk, experts: Experts, dispatch: Dispatch, share: int = 1):
    """[M, D]: Σ over a token's choices that are experts here of weight · SwiGLU of the chosen expert.

    `share`: over how many devices the pairs are spread. Even loads give each a share of the rows, and that is what is
    computed at a time; other loads take longer, and are as exact.
    """
    return _forward(x_MD, weight_Mk, experts, dispatch, share)[0]


def _experts_fwd(x_MD, weight_Mk, experts, dispatch, share):
    y_MD, *hidden = _forward(x_MD, weight_Mk, experts, dispatch, share)
    return y_MD, (x_MD, weight_Mk, experts, dispatch, *hidden)


def _experts_bwd(share, residuals, grad_MD):
    if platform() == "cpu":
        return *expert_tiles.backward(*residuals, grad_MD), None
    return *expert_chunks.backward(*residuals, grad_MD, share), None


experts_ffn.defvjp(_experts_fwd, _experts_bwd)


def _forward(x_MD, weight_Mk, experts: Experts, dispatch: Dispatch, share: int):
    """(y [M, D], and where it is kept for the gradient what the gates and ups gave)."""
    arguments = (x_MD, weight_Mk, experts, dispatch)
    return expert_tiles.forward(*arguments) if platform() == "cpu" else (expert_chunks.forward(*arguments, share),)


def expert_parallel(x_BTD, weight_BTk, index_BTk, live_BT, experts: Experts, most: int | None = None):
    """(the experts' weighted sums [B, T, D], pairs that were not computed: 0), on the mesh in scope.

    Padding has no rows and its sums are 0: it would all choose the same experts, and their devices would be late.
    `experts` are as they are stored, split over `expert`, `fsdp` and `tensor`, in any dtype; they are computed in x's.
    Tokens that `expert` splits are sent to the devices of their experts (`exchange`), each to `most` of them at the
    most; None: to as many as it chooses experts. Others are on all devices already.
    """
    wanted = jnp.sum(live_BT) * index_BTk.shape[-1]
    index_BTk = jnp.where(live_BT[..., None], index_BTk, len(experts.gate))
    if one_device():
        dispatch = plan_dispatch(_tokens(index_BTk), len(experts.gate))
        matrices = Experts(*(matrix.astype(x_BTD.dtype) for matrix in experts))
        y_MD = experts_ffn(_tokens(x_BTD), _tokens(weight_BTk), matrices, dispatch)
        return y_MD.reshape(x_BTD.shape), count_drops(dispatch, wanted)
    axes = token_axes(x_BTD.shape[:2])
    into, out = partition_spec(("experts", "embed", "ffn")), partition_spec(("experts", "ffn", "embed"))
    most = min(ways("experts"), most or index_BTk.shape[-1])
    y_BTD, rows = jax.shard_map(
        functools.partial(_on_device, axes=(*axes[0], *axes[1]), most=most),
        in_specs=(*(PartitionSpec(*axes),) * 3, Experts(into, into, out)),
        out_specs=(PartitionSpec(*axes), PartitionSpec()),
        check_vma=False,
    )(x_BTD, weight_BTk, index_BTk, experts)
    return y_BTD, wanted - rows


def _on_device(x_BTD, weight_BTk, index_BTk, experts: Experts, *, axes: tuple[str, ...], most: int):
    """(sums, rows that were computed by all devices) of one device of a mesh whose `axes` split the tokens."""
    matrices = (matrix.astype(x_BTD.dtype) for matrix in experts)
    gather = functools.partial(jax.lax.all_gather, axis_name=RULES["embed"], tiled=True)
    matrices = Experts(*(gather(m, axis=axis) for m, axis in zip(matrices, (1, 1, 2), strict=True)))
    tokens = [_tokens(a) for a in (x_BTD, weight_BTk, index_BTk)]
    if "expert" in axes and ways("experts") > 1:
        y_MD, rows = _of_sent_tokens(*tokens, matrices, most)
    else:
        y_MD, rows = _of_tokens_here(*tokens, matrices)
        y_MD = jax.lax.psum(y_MD, "expert")
    rows = jax.lax.psum(rows, ("expert", *(axis for axis in axes if axis != "expert")))
    return jax.lax.psum(y_MD, "tensor").reshape(x_BTD.shape), rows


def _of_sent_tokens(x_MD, weight_Mk, index_Mk, experts: Experts, most: int):
    """(sums over all devices' experts, rows that were computed here); indices and weights are few, and go to all."""
    weight_WMk, index_WMk = (jax.lax.all_gather(a, "expert") for a in (weight_Mk, index_Mk))
    routes = exchange.plan_routes(index_WMk, len(experts.gate), most)
    index_Rk = _tokens(index_WMk).at[routes.token_of_came].get(mode="fill", fill_value=-1)  # of no expert
    came = exchange.send(x_MD, routes), exchange.weights_of_came(weight_WMk, routes), index_Rk
    y_RD, rows = _of_tokens_here(*came, experts)
    return exchange.bring_back(y_RD, routes), rows


def _of_tokens_here(x_MD, weight_Mk, index_Mk, experts: Experts):
    """(sums over the experts of this device, rows that were computed)."""
    first = jax.lax.axis_index("expert") * len(experts.gate)
    dispatch = plan_dispatch(index_Mk, len(experts.gate), first)
    return experts_ffn(x_MD, weight_Mk, experts, dispatch, ways("experts")), jnp.sum(dispatch.loads)


def _tokens(x_BTD):
    return x_BTD.reshape(-1, x_BTD.shape[-1])
