"""The chunked form in plain jnp: matmuls inside chunks, a scan over one state per chunk; linear in T.

Every decay is exp(log_decay · live tokens between two positions), computed from one difference. Factors
exp(-log_decay · i), as a product form needs, overflow float32 within a chunk for fast heads.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from pallas_kernels.lightning_attention.documents import document_ids
from pallas_kernels.lightning_attention.isolation import isolated

DEFAULT_CHUNK = 128


class Decays(NamedTuple):
    """Decays of the M = B · N chunks of all rows; a leading 1 instead of M means that all chunks share them."""

    within: jax.Array  # [M, H, C, C] from token j to token i of one document, 0 elsewhere
    from_start: jax.Array  # [M, C, H] of the incoming state at token i
    to_end: jax.Array  # [M, C, H] of token j in the outgoing state
    lost: jax.Array  # [B, N, H] decay - 1 of the incoming state in the outgoing one, to full precision
    kept: jax.Array | None  # [B, N] whether incoming and outgoing state have one document; None: yes


def lightning_attention_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    initial_state: jax.Array | None,
    segment_ids: ArrayLike | None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`lightning_attention` by chunks; q, k [B, T, H, K], v [B, T, H, V], state [B, H, K, V] or None for zeros."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    length = q.shape[1]
    state = None if initial_state is None else initial_state.astype(dtype)
    arguments = q, k, v, log_decay.astype(dtype), state
    attend = functools.partial(_attend, chunk=min(chunk_size or DEFAULT_CHUNK, length))
    if segment_ids is None:
        return attend(*arguments, None)
    docs_BT = document_ids(segment_ids)
    # A single token has no other documents, and a scan of its state would cost as much as its decay.
    return attend(*arguments, docs_BT) if length == 1 else isolated(attend, *arguments, docs_BT)


def _attend(q, k, v, log_decay, initial_state, docs_BT, *, chunk: int):
    """Attention for `docs_BT` from `document_ids`; None: each row is one document."""
    dtype = log_decay.dtype
    rows, length = q.shape[:2]
    if initial_state is None:
        initial_state = jnp.zeros((rows, *q.shape[2:], v.shape[3]), dtype)
    q_MCHK, k_MCHK, v_MCHV = (_chunks(x.astype(dtype), chunk) for x in (q, k, v))
    if docs_BT is None:
        decays = _plain_decays(log_decay, rows, length, chunk)
    else:
        decays = _document_decays(log_decay, _chunks(docs_BT, chunk).reshape(rows, -1, chunk))
    update_MHKV = jnp.einsum("MCHK,MCHV->MHKV", k_MCHK * decays.to_end[..., None], v_MCHV)
    update_BNHKV = update_MHKV.reshape(rows, -1, *update_MHKV.shape[1:])
    state_BHKV, state_BNHKV = _scan_states(initial_state, decays, update_BNHKV)
    score_MHCS = jnp.einsum("MCHK,MSHK->MHCS", q_MCHK, k_MCHK) * decays.within
    out_MCHV = jnp.einsum("MHCS,MSHV->MCHV", score_MHCS, v_MCHV)
    state_MHKV = state_BNHKV.reshape(update_MHKV.shape)
    out_MCHV += jnp.einsum("MCHK,MHKV->MCHV", q_MCHK * decays.from_start[..., None], state_MHKV)
    out = out_MCHV.reshape(rows, -1, *v.shape[2:])[:, :length] * q.shape[-1] ** -0.5
    return out.astype(v.dtype), state_BHKV


def _chunks(x, chunk: int):
    """[B, T, …] -> [M, C, …], rows padded with zeros.

    Rows and chunks share one axis because XLA on a CPU splits the leading axis among threads.
    """
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunk), *((0, 0),) * (x.ndim - 2)))
    return padded.reshape(-1, chunk, *x.shape[2:])


def _scan_states(initial_BHKV, decays: Decays, update_BNHKV):
    """(final state [B, H, K, V], the state that enters each chunk [B, N, H, K, V]).

    The update is S + ((decay - 1) S + update): for a decay near 1, float32 keeps all digits of decay - 1. With one
    token at a time, the rounding of decay itself would accumulate.
    """

    def chunk(state, inputs):
        lost_BH, kept_B, update_BHKV = inputs
        old = state if kept_B is None else jnp.where(kept_B[:, None, None, None], state, 0)
        return old + (lost_BH[..., None, None] * old + update_BHKV), state

    lost_BNH = jnp.broadcast_to(decays.lost, update_BNHKV.shape[:3])
    inputs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (lost_BNH, decays.kept, update_BNHKV))
    state, states = jax.lax.scan(chunk, initial_BHKV, inputs)
    return state, jnp.moveaxis(states, 0, 1)


def _plain_decays(log_decay_H, rows: int, length: int, chunk: int) -> Decays:
    """Decays if each row is one document. The padding of the last chunk has k = 0 and must not decay the state."""
    i = np.arange(chunk)
    live = np.minimum(chunk, length - np.arange(0, length, chunk))[:, None]  # [N, 1] tokens of each chunk
    apart = np.maximum(i[:, None] - i, 0)

    def log_of(steps):
        return log_decay_H * jnp.asarray(steps, log_decay_H.dtype)[..., None]

    def decay(steps):
        return jnp.exp(log_of(steps))

    within_CSH = jnp.where((i[:, None] >= i)[..., None], decay(apart), 0)
    return Decays(
        within=jnp.moveaxis(within_CSH, -1, 0)[None],
        from_start=decay(i + 1)[None],
        to_end=decay(np.tile(np.maximum(live - 1 - i, 0), (rows, 1))),
        lost=jnp.expm1(log_of(live[:, 0]))[None],
        kept=None,
    )


def _document_decays(log_decay_H, docs_BNC) -> Decays:
    """Decays with documents: states restart with each, and padding (0) neither writes, reads nor decays."""
    live_BNC = docs_BNC > 0
    count_BNC = jnp.cumsum(live_BNC, axis=2, dtype=log_decay_H.dtype)
    # The document of the state after and before each chunk; the initial state belongs to the first document.
    last_BN = jnp.maximum(jax.lax.cummax(docs_BNC.max(axis=2), axis=1), 1)
    first_BN = jnp.pad(last_BN, ((0, 0), (1, 0)), constant_values=1)[:, :-1]
    order = np.arange(docs_BNC.shape[2])
    same_BNCS = (docs_BNC[..., :, None] == docs_BNC[..., None, :]) & live_BNC[..., None] & (order[:, None] >= order)

    def decay(steps, where):
        return jnp.where(where[..., None], jnp.exp(log_decay_H * jnp.where(where, steps, 0)[..., None]), 0)

    within_BNHCS = jnp.moveaxis(decay(count_BNC[..., :, None] - count_BNC[..., None, :], same_BNCS), -1, 2)

    def all_chunks(x_BN):
        return x_BN.reshape(-1, *x_BN.shape[2:])

    return Decays(
        within=all_chunks(within_BNHCS),
        from_start=all_chunks(decay(count_BNC, docs_BNC == first_BN[..., None])),
        to_end=all_chunks(decay(count_BNC[..., -1:] - count_BNC, docs_BNC == last_BN[..., None])),
        lost=jnp.expm1(log_decay_H * count_BNC[..., -1:]),
        kept=first_BN == last_BN,
    )
