"""Dropless experts: rows sorted by expert, a SwiGLU for each expert's rows, weighted sums (docs/architecture.md §8).

`experts_ffn` has a gradient of its own and two implementations: chunks of grouped matmuls on accelerators
(`expert_chunks`), and tiles on CPUs (`expert_tiles`), where XLA would compute a ragged_dot as E full matmuls. The
number of rows is static, so no pair is dropped. `expert_parallel` runs it on the devices that store the experts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ling_jax.parallel import exchange, expert_chunks, expert_tiles
from ling_jax.parallel.sharding import RULES, num_shards, one_device, partition_spec, token_axes
from pallas_kernels.platform import platform

BLOCK = 512  # pairs; a sum of this many ones is exact in any matmul


class Dispatch(NamedTuple):
    """The rows of the (token, choice) pairs: P = M·k rows, sorted by expert."""

    row_of_pair: jax.Array  # [M, k] int32
    pair_of_row: jax.Array  # [P] int32
    loads: jax.Array  # [E] int32 rows of each expert


class Experts(NamedTuple):
    """SwiGLU matrices of all experts."""

    gate: jax.Array  # [E, D, F]
    up: jax.Array  # [E, D, F]
    down: jax.Array  # [E, F, D]


def plan_dispatch(expert_index: jax.Array, num_experts: int, first: int | jax.Array = 0) -> Dispatch:
    """Sorts the pairs by expert for experts first … first + num_experts - 1; expert_index [M, k] integers.

    Pairs of other experts come last and count in no load.
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


def counted_rows(expert_P: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """(row of each pair in a stable sort by expert [P], rows of each expert [E]); expert `num_experts` means any other.

    Matmuls with a triangular matrix count the earlier pairs of each expert: sorting is slow on a TPU, to run and to
    compile.
    """
    block = min(BLOCK, len(expert_P))
    expert_NC = jnp.pad(expert_P, (0, -len(expert_P) % block), constant_values=num_experts).reshape(-1, block)
    chosen_NCE = expert_NC[..., None] == jnp.arange(num_experts + 1)
    before_CS = np.tri(block, k=-1, dtype=np.float32)
    within_NCE = jnp.einsum("CS,NSE->NCE", before_CS, chosen_NCE.astype(jnp.float32)).astype(jnp.int32)
    loads_NE = chosen_NCE.sum(axis=1, dtype=jnp.int32)
    loads_E = loads_NE.sum(axis=0)
    first_NE = jnp.cumsum(loads_NE, axis=0) - loads_NE + jnp.cumsum(loads_E) - loads_E
    row_NC = jnp.sum(jnp.where(chosen_NCE, within_NCE + first_NE[:, None], 0), axis=2)
    return row_NC.reshape(-1)[: len(expert_P)], loads_E[:num_experts]


def count_drops(dispatch: Dispatch, wanted: int | jax.Array | None = None) -> jax.Array:
    """Pairs without a row of their own, plus |wanted - Σ loads|; an int32 scalar that is 0 unless there is a bug.

    `wanted` is the number of pairs that must have a row; None: all.
    """
    pairs = dispatch.pair_of_row.size
    found = dispatch.pair_of_row[dispatch.row_of_pair.reshape(-1)]
    wanted = pairs if wanted is None else wanted
    return jnp.sum(found != jnp.arange(pairs)) + jnp.abs(wanted - jnp.sum(dispatch.loads))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def experts_ffn(
    x_MD: jax.Array, weight_Mk: jax.Array, experts: Experts, dispatch: Dispatch, share: int = 1
) -> jax.Array:
    """Σ over a token's choices among these experts of weight · SwiGLU_expert(x), [M, D] in x's dtype.

    x [M, D], weight [M, k]. `share` is the number of devices over which the pairs are spread; an accelerator computes
    1/share of the rows at a time. Uneven loads take longer and give the same result.
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
    """(y [M, D], and on a CPU the gate and up activations for backward)."""
    arguments = (x_MD, weight_Mk, experts, dispatch)
    return expert_tiles.forward(*arguments) if platform() == "cpu" else (expert_chunks.forward(*arguments, share),)


def expert_parallel(
    x_BTD: jax.Array,
    weight_BTk: jax.Array,
    index_BTk: jax.Array,
    live_BT: jax.Array,
    experts: Experts,
    max_devices: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(weighted sums over the experts [B, T, D], number of pairs that were not computed: 0), on the mesh in scope.

    Padding gets no rows and a sum of 0; otherwise all padding would choose the same experts and delay their devices.
    `experts` are as stored, split over `expert`, `fsdp` and `tensor`, in any dtype; the computation is in x's dtype. If
    `expert` splits the tokens, each is sent to the devices of its experts (`exchange`), at most `max_devices` of them
    (None: as many as it chooses experts). Otherwise all devices already have it.
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
    max_devices = min(num_shards("experts"), max_devices or index_BTk.shape[-1])
    y_BTD, rows = jax.shard_map(
        functools.partial(_on_device, axes=(*axes[0], *axes[1]), max_devices=max_devices),
        in_specs=(*(PartitionSpec(*axes),) * 3, Experts(into, into, out)),
        out_specs=(PartitionSpec(*axes), PartitionSpec()),
        check_vma=False,
    )(x_BTD, weight_BTk, index_BTk, experts)
    return y_BTD, wanted - rows


def _on_device(x_BTD, weight_BTk, index_BTk, experts: Experts, *, axes: tuple[str, ...], max_devices: int):
    """(sums, rows computed by all devices) on one device of a mesh whose `axes` split the tokens."""
    matrices = (matrix.astype(x_BTD.dtype) for matrix in experts)
    gather = functools.partial(jax.lax.all_gather, axis_name=RULES["embed"], tiled=True)
    matrices = Experts(*(gather(m, axis=axis) for m, axis in zip(matrices, (1, 1, 2), strict=True)))
    tokens = [_tokens(a) for a in (x_BTD, weight_BTk, index_BTk)]
    if "expert" in axes and num_shards("experts") > 1:
        y_MD, rows = _with_exchange(*tokens, matrices, max_devices)
    else:
        y_MD, rows = _local_experts(*tokens, matrices)
        y_MD = jax.lax.psum(y_MD, "expert")
    rows = jax.lax.psum(rows, ("expert", *(axis for axis in axes if axis != "expert")))
    return jax.lax.psum(y_MD, "tensor").reshape(x_BTD.shape), rows


def _with_exchange(x_MD, weight_Mk, index_Mk, experts: Experts, max_devices: int):
    """(sums over the experts of all devices, rows computed here). All devices gather the small indices and weights."""
    weight_WMk, index_WMk = (jax.lax.all_gather(a, "expert") for a in (weight_Mk, index_Mk))
    routes = exchange.plan_routes(index_WMk, len(experts.gate), max_devices)
    index_Rk = _tokens(index_WMk).at[routes.token_of_received].get(mode="fill", fill_value=-1)  # of no expert
    received = exchange.send(x_MD, routes), exchange.received_weights(weight_WMk, routes), index_Rk
    y_RD, rows = _local_experts(*received, experts)
    return exchange.combine(y_RD, routes), rows


def _local_experts(x_MD, weight_Mk, index_Mk, experts: Experts):
    """(sums over the experts of this device, rows computed)."""
    first = jax.lax.axis_index("expert") * len(experts.gate)
    dispatch = plan_dispatch(index_Mk, len(experts.gate), first)
    return experts_ffn(x_MD, weight_Mk, experts, dispatch, num_shards("experts")), jnp.sum(dispatch.loads)


def _tokens(x_BTD):
    return x_BTD.reshape(-1, x_BTD.shape[-1])
