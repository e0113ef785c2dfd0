"""Lightning attention over rows that are split among ranks: each does its tokens alone, one all-gather of summaries
follows, and a correction adds what older tokens contribute (docs/architecture.md §5; the split is our choice).

    out, summary = local_attention(…)                      on each rank
    summaries = all-gather of summary                      [R, …]
    incoming, final_state = fold_states(summaries, …)      the state that enters each rank
    out = add_incoming(out, q, incoming[rank], …)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_attention.api import lightning_attention
from pallas_kernels.lightning_attention.documents import document_ids


class Summary(NamedTuple):
    """Of a rank's tokens, all that other ranks need."""

    state: jax.Array  # [B, H, K, V] after its last live token, its tokens alone
    live: jax.Array  # [B] int32 live tokens
    first_id: jax.Array  # [B] segment id of its first token
    last_id: jax.Array  # [B]
    later_starts: jax.Array  # [B] int32 documents that begin behind its first token


def local_attention(q, k, v, log_decay, segment_ids, *, backend: str | None = None):
    """(out [B, T, H, V], Summary) of a rank's tokens alone; arguments as in `lightning_attention`."""
    out, state = lightning_attention(q, k, v, log_decay, segment_ids=segment_ids, backend=backend)
    ids = jnp.asarray(segment_ids)
    starts_BT = (ids[:, 1:] != 0) & (ids[:, 1:] != ids[:, :-1])
    live = jnp.sum(ids != 0, axis=1, dtype=jnp.int32)
    return out, Summary(state, live, ids[:, 0], ids[:, -1], jnp.sum(starts_BT, axis=1, dtype=jnp.int32))


def fold_states(summaries: Summary, log_decay, initial_state=None):
    """(the state that enters each rank [R, B, H, K, V], the final state [B, H, K, V]).

    `summaries` are stacked in the order of ranks. A state enters a rank only where the document goes on there;
    `initial_state` [B, H, K, V] or None for zeros belongs to the row's first document.
    """
    state = jnp.zeros_like(summaries.state[0]) if initial_state is None else initial_state
    nothing = jnp.zeros_like(summaries.live[0])

    def rank(carry, summary: Summary):
        state, seen, last_id = carry
        has_live, seen_after = summary.live > 0, seen + summary.live
        begins = (summary.first_id != 0) & (summary.first_id != last_id)  # a document, with the first token
        row_begins = (seen == 0) & has_live  # its first document takes the initial state
        fresh = summary.later_starts + begins - row_begins > 0
        enters_BHKV = _where(has_live & (begins | (summary.first_id == 0)) & ~row_begins, 0, state)
        decay_BH = jnp.exp(log_decay.astype(state.dtype) * summary.live[:, None])
        state = _where(fresh, 0, decay_BH[..., None, None] * state) + summary.state
        return (state, seen_after, summary.last_id), enters_BHKV

    (state, _, _), incoming = jax.lax.scan(rank, (state, nothing, jnp.zeros_like(summaries.last_id[0])), summaries)
    return incoming, state


def add_incoming(out, q, state, log_decay, segment_ids):
    """out [B, T, H, V] + K^-0.5 exp(log_decay · c) q S where S enters, at the c-th token here of its document."""
    enters_BT11 = (document_ids(segment_ids) == 1)[..., None, None]
    steps_BT1 = jnp.cumsum(enters_BT11[..., 0], axis=1, dtype=state.dtype)
    decay_BTH1 = jnp.exp(log_decay.astype(state.dtype) * steps_BT1)[..., None]
    read_BTHV = jnp.einsum("BTHK,BHKV->BTHV", q.astype(state.dtype), state) * decay_BTH1 * q.shape[-1] ** -0.5
    return (out.astype(state.dtype) + jnp.where(enters_BT11, read_BTHV, 0)).astype(out.dtype)


def _where(row_B, x, y_BHKV):
    return jnp.where(row_B[:, None, None, None], x, y_BHKV)
