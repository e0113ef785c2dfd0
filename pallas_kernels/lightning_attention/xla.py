"""The chunked form in plain jnp: matmuls inside chunks, a scan over one state per chunk; linear in T.

Every decay is exp(log_decay · number of live tokens between two places), formed as one difference: the factors
exp(-log_decay · i) that a product form needs overflow float32 within a chunk for the fast heads.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.lightning_attention.documents import document_ids
from pallas_kernels.lightning_attention.isolation import isolated

DEFAULT_CHUNK = 128


class Decays(NamedTuple):
    """Decays of every chunk of every row, M = B · N of them; the leading M is 1 where all chunks share them."""

    within: jax.Array  # [M, H, C, C] from token j to token i of one document, 0 elsewhere
    from_start: jax.Array  # [M, C, H] of the incoming state at token i
    to_end: jax.Array  # [M, C, H] of token j in the outgoing state
    lost: jax.Array  # [B, N, H] of the incoming state in the outgoing one: its decay - 1, to all digits
    kept: jax.Array | None  # [B, N] whether the incoming state is of the outgoing one's document; None: it is


def lightning_attention_xla(q, k, v, log_decay, initial_state, segment_ids, chunk_size: int | None = None):
    """Same result as the reference; q, k [B, T, H, K], v [B, T, H, V], states [B, H, K, V] or None for zeros."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    length = q.shape[1]
    state = None if initial_state is None else initial_state.astype(dtype)
    arguments = q, k, v, log_decay.astype(dtype), state
    attend = functools.partial(_attend, chunk=min(chunk_size or DEFAULT_CHUNK, length))
    if segment_ids is None:
        return attend(*arguments, None)
    docs_BT = document_ids(segment_ids)
    # One token has no neighbours, and to look through its state would cost as much as to decay it.
    return attend(*arguments, docs_BT) if length == 1 else isolated(attend, *arguments, docs_BT)


def _attend(q, k, v, log_decay, initial_state, docs_BT, *, chunk: int):
    """For `docs_BT` of `document_ids`, or None where each row is one document."""
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
    """[B, T, …] -> [M, C, …], zeros behind the end of each row. One axis of all chunks: XLA's CPU code shares a
    leading axis among its threads, and a single row of many chunks would leave all but one idle."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunk), *((0, 0),) * (x.ndim - 2)))
    return padded.reshape(-1, chunk, *x.shape[2:])


def _scan_states(initial_BHKV, decays: Decays, update_BNHKV):
    """(last state, the state that enters each chunk [B, N, H, K, V]).

    S + ((decay - 1) S + update): of a decay near 1, a float32 holds the last digits of decay - 1 only. When tokens come
    one at a time, the product of many rounded decays would be off by as many roundings.
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
    """Every row one document. The padding behind the last token has k = 0 and must not decay the state."""
    i = np.arange(chunk)
    live = np.minimum(chunk, length - np.arange(0, length, chunk))[:, None]  # [N, 1] tokens of each chunk
    apart = np.maximum(i[:, None] - i, 0)
    log_of = lambda steps: log_decay_H * jnp.asarray(steps, log_decay_H.dtype)[..., None]  # noqa: E731
    decay = lambda steps: jnp.exp(log_of(steps))  # noqa: E731
    within_CSH = jnp.where((i[:, None] >= i)[..., None], decay(apart), 0)
    return Decays(
        within=jnp.moveaxis(within_CSH, -1, 0)[None],
        from_start=decay(i + 1)[None],
        to_end=decay(np.tile(np.maximum(live - 1 - i, 0), (rows, 1))),
        lost=jnp.expm1(log_of(live[:, 0]))[None],
        kept=None,
    )


def _document_decays(log_decay_H, docs_BNC) -> Decays:
    """States restart with each document; padding (0) neither writes, reads nor decays."""
    live_BNC = docs_BNC > 0
    count_BNC = jnp.cumsum(live_BNC, axis=2, dtype=log_decay_H.dtype)
    # The document of the state behind each chunk, and before it; the initial state belongs to the first document.
    last_BN = jnp.maximum(jax.lax.cummax(docs_BNC.max(axis=2), axis=1), 1)
    first_BN = jnp.pad(last_BN, ((0, 0), (1, 0)), constant_values=1)[:, :-1]
    order = np.arange(docs_BNC.shape[2])
    same_BNCS = (docs_BNC[..., :, None] == docs_BNC[..., None, :]) & live_BNC[..., None] & (order[:, None] >= order)

    def decay(steps, where):
        return jnp.where(where[..., None], jnp.exp(log_decay_H * jnp.where(where, steps, 0)[..., None]), 0)

    within_BNHCS = jnp.moveaxis(decay(count_BNC[..., :, None] - count_BNC[..., None, :], same_BNCS), -1, 2)
    all_chunks = lambda x_BN: x_BN.reshape(-1, *x_BN.shape[2:])  # noqa: E731
    return Decays(
        within=all_chunks(within_BNHCS),
        from_start=all_chunks(decay(count_BNC, docs_BNC == first_BN[..., None])),
        to_end=all_chunks(decay(count_BNC[..., -1:] - count_BNC, docs_BNC == last_BN[..., None])),
        lost=jnp.expm1(log_decay_H * count_BNC[..., -1:]),
        kept=first_BN == last_BN,
    )
