"""Causal softmax attention that GQA and MLA share."""

import jax
import jax.numpy as jnp


def cached_attention(q_BTHK, k_new, v_new, k_old, v_old, sequence, scale: float):
    """[B, T, H, V]: as `softmax_attention`, of new tokens (k_new, v_new [B, T, G, …]) that also attend to the cached
    ones before them, k_old and v_old [B, S, G, …], of which row b has `sequence.cached[b]`."""
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    q_BTGHK = q_BTHK.reshape(*q_BTHK.shape[:2], k_new.shape[2], -1, q_BTHK.shape[3])

    def scores(k_BSGK, allowed_BTS):
        k_BSGK = k_BSGK.astype(q_BTHK.dtype)
        score_BGHTS = jnp.einsum("BTGHK,BSGK->BGHTS", q_BTGHK, k_BSGK, preferred_element_type=dtype) * scale
        return jnp.where(allowed_BTS[:, None, None], score_BGHTS, jnp.finfo(dtype).min)

    length, room = q_BTHK.shape[1], k_old.shape[1]
    old_BTS = jnp.broadcast_to((jnp.arange(room) < sequence.cached[:, None])[:, None], (len(q_BTHK), length, room))
    new_BTS = jnp.tril(jnp.ones((length, length), bool)) & sequence.live[:, None, :]
    weight_BGHTS = jax.nn.softmax(jnp.concatenate([scores(k_old, old_BTS), scores(k_new, new_BTS)], axis=-1), axis=-1)
    weights = jnp.split(weight_BGHTS.astype(v_new.dtype), [room], axis=-1)
    parts = [
        jnp.einsum("BGHTS,BSGV->BTGHV", w, v.astype(v_new.dtype)) for w, v in zip(weights, (v_old, v_new), strict=True)
    ]
    return sum(parts).reshape(*q_BTHK.shape[:3], -1)


def softmax_attention(q_BTHK, k_BSGK, v_BSGV, docs_BT, scale: float):
    """[B, T, H, V]: query head h attends to key/value head h // (H/G), causally and inside its document.

    `docs_BT` numbers the documents (0 padding) or is None; scores and softmax are in at least float32. A padding
    query attends to what precedes it; its output means nothing and reaches no other token.
    """
    batch, length, heads, key_dim = q_BTHK.shape
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    q_BTGHK = q_BTHK.reshape(batch, length, k_BSGK.shape[2], -1, key_dim)
    score_BGHTS = jnp.einsum("BTGHK,BSGK->BGHTS", q_BTGHK, k_BSGK, preferred_element_type=dtype) * scale
    allowed_BTS = jnp.tril(jnp.ones((1, length, length), bool))
    if docs_BT is not None:
        same = (docs_BT[:, :, None] == docs_BT[:, None, :]) | (docs_BT == 0)[:, :, None]
        allowed_BTS = allowed_BTS & same
    score_BGHTS = jnp.where(allowed_BTS[:, None, None], score_BGHTS, jnp.finfo(dtype).min)
    weight_BGHTS = jax.nn.softmax(score_BGHTS, axis=-1).astype(v_BSGV.dtype)
    out_BTGHV = jnp.einsum("BGHTS,BSGV->BTGHV", weight_BGHTS, v_BSGV)
    return out_BTGHV.reshape(batch, length, heads, -1)
