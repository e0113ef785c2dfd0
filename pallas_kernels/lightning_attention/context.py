"""Lightning attention over rows that are split among ranks: what one rank's tokens hand to those behind them
(docs/architecture.md §15; the split is our choice).

    between = live_between(docs, ranks)                           once, of whole rows
    states = all-gather of local_state(k, v, log_decay, docs)     [R, B, H, K, V], each rank of its own tokens
    state = entering_state(states, between of this rank, log_decay)
    out, _ = lightning_attention(q, k, v, log_decay, initial_state=state, segment_ids=docs)

Documents are numbered over the whole row (`document_ids`): a rank sees by the number alone that one goes on.
"""

import jax.numpy as jnp
import numpy as np


def live_between(docs, ranks: int):
    """[B, R, R] int32: how many live tokens stand between rank j (last axis) and rank k (the one before), or -1 where
    rank k gets nothing of rank j: it is not older, or its last document does not go on in rank k.

    docs [B, T]: documents numbered over whole rows, 0 padding; the ranks have T/R neighbouring tokens each.
    """
    docs_BRC = docs.reshape(len(docs), ranks, -1)
    last_BR, live_BR = docs_BRC.max(axis=2), jnp.sum(docs_BRC > 0, axis=2, dtype=jnp.int32)
    behind = jnp.iinfo(docs.dtype).max
    first_BR = jnp.where(docs_BRC > 0, docs_BRC, behind).min(axis=2)
    count_BR = jnp.cumsum(live_BR, axis=1)
    goes_on_BRS = (first_BR[:, :, None] == last_BR[:, None, :]) & np.tri(ranks, k=-1, dtype=bool)
    return jnp.where(goes_on_BRS, (count_BR - live_BR)[:, :, None] - count_BR[:, None, :], -1)


def local_state(k, v, log_decay, docs):
    """[B, H, K, V], at least float32: the state after a rank's tokens, of these alone: Σ_t decay(after t) k_t^T v_t.

    k [B, C, H, K], v [B, C, H, V], log_decay [H], docs [B, C]. Only tokens of the last document are in it.
    """
    dtype = jnp.promote_types(k.dtype, jnp.float32)
    live_BC = docs > 0
    after_BC = live_BC.sum(axis=1, keepdims=True) - jnp.cumsum(live_BC, axis=1)
    kept_BC11 = (live_BC & (docs == docs.max(axis=1, keepdims=True)))[..., None, None]
    k_BCHK, v_BCHV = (jnp.where(kept_BC11, x.astype(dtype), 0) for x in (k, v))  # what is not finite stays outside
    return jnp.einsum("BCHK,BCHV->BHKV", k_BCHK * _decay(log_decay, after_BC, dtype)[..., None], v_BCHV)


def entering_state(states, between, log_decay):
    """[B, H, K, V] of [R, B, H, K, V]: the state that a rank's tokens begin with, 0 where they begin a document.

    between [B, R]: this rank's row of `live_between`.
    """
    steps_RB = between.T
    kept_RBHKV = jnp.where((steps_RB >= 0)[..., None, None, None], states, 0)
    return jnp.sum(kept_RBHKV * _decay(log_decay, jnp.maximum(steps_RB, 0), states.dtype)[..., None, None], axis=0)


def _decay(log_decay, steps, dtype):
    """[…, H] exp(log_decay · steps)."""
    return jnp.exp(log_decay.astype(dtype) * steps[..., None])
