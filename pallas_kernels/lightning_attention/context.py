"""Lightning attention over rows that are split among ranks: the states that ranks hand on (docs/architecture.md
§15; our choice).

    between = live_between(docs, ranks)                           once, of whole rows
    states = all-gather of local_state(k, v, log_decay, docs)     [R, B, H, K, V], each rank of its own tokens
    state = entering_state(states, between of this rank, log_decay)
    out, _ = lightning_attention(q, k, v, log_decay, initial_state=state, segment_ids=docs)

Documents are numbered over whole rows (`document_ids`), so a rank knows from the number that a document continues.
"""

import jax
import jax.numpy as jnp
import numpy as np


def live_between(docs: jax.Array, ranks: int) -> jax.Array:
    """[B, R, R] int32: live tokens on the ranks between rank j (last axis) and rank k (middle axis).

    -1 means that rank k needs no state of rank j: j is not before k, or j's last document does not continue in k. docs
    [B, T] are document numbers of whole rows, 0 for padding; each rank has T/R neighbouring tokens.
    """
    docs_BRC = docs.reshape(len(docs), ranks, -1)
    last_BR, live_BR = docs_BRC.max(axis=2), jnp.sum(docs_BRC > 0, axis=2, dtype=jnp.int32)
    behind = jnp.iinfo(docs.dtype).max
    first_BR = jnp.where(docs_BRC > 0, docs_BRC, behind).min(axis=2)
    count_BR = jnp.cumsum(live_BR, axis=1)
    goes_on_BRS = (first_BR[:, :, None] == last_BR[:, None, :]) & np.tri(ranks, k=-1, dtype=bool)
    return jnp.where(goes_on_BRS, (count_BR - live_BR)[:, :, None] - count_BR[:, None, :], -1)


def local_state(k: jax.Array, v: jax.Array, log_decay: jax.Array, docs: jax.Array) -> jax.Array:
    """The state from a rank's tokens alone, Σ_t decay(after t) k_t^T v_t: [B, H, K, V] in at least float32.

    k [B, C, H, K], v [B, C, H, V], log_decay [H], docs [B, C]. Only tokens of the last document count.
    """
    dtype = jnp.promote_types(k.dtype, jnp.float32)
    live_BC = docs > 0
    after_BC = live_BC.sum(axis=1, keepdims=True) - jnp.cumsum(live_BC, axis=1)
    kept_BC11 = (live_BC & (docs == docs.max(axis=1, keepdims=True)))[..., None, None]
    # Drops NaN and infinity of other tokens.
    k_BCHK, v_BCHV = (jnp.where(kept_BC11, x.astype(dtype), 0) for x in (k, v))
    return jnp.einsum("BCHK,BCHV->BHKV", k_BCHK * _decay(log_decay, after_BC, dtype)[..., None], v_BCHV)


def entering_state(states: jax.Array, between: jax.Array, log_decay: jax.Array) -> jax.Array:
    """The state that enters a rank, [B, H, K, V], from the local states [R, B, H, K, V]; 0 at the start of a document.

    between [B, R] is this rank's row of `live_between`.
    """
    steps_RB = between.T
    kept_RBHKV = jnp.where((steps_RB >= 0)[..., None, None, None], states, 0)
    return jnp.sum(kept_RBHKV * _decay(log_decay, jnp.maximum(steps_RB, 0), states.dtype)[..., None, None], axis=0)


def _decay(log_decay, steps, dtype):
    """exp(log_decay · steps), [..., H]."""
    return jnp.exp(log_decay.astype(dtype) * steps[..., None])
