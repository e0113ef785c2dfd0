"""Causal softmax attention that GQA and MLA share."""

import jax
import jax.numpy as jnp


def cached_attention(q_BTHK, k_BSGK, v_BSGV, last_BT, scale: float):
    """[B, T, H, V]: as `softmax_attention`, over the S slots of a cache; each query sees slots 0 to its `last`."""
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    q_BTGHK = q_BTHK.reshape(*q_BTHK.shape[:2], k_BSGK.shape[2], -1, q_BTHK.shape[3])
    k_BSGK, v_BSGV = k_BSGK.astype(q_BTHK.dtype), v_BSGV.astype(q_BTHK.dtype)
    score_BGHTS = jnp.einsum("BTGHK,BSGK->BGHTS", q_BTGHK, k_BSGK, preferred_element_type=dtype) * scale
    allowed_BTS = jnp.arange(k_BSGK.shape[1]) <= last_BT[..., None]
    score_BGHTS = jnp.where(allowed_BTS[:, None, None], score_BGHTS, jnp.finfo(dtype).min)
    weight_BGHTS = jax.nn.softmax(score_BGHTS, axis=-1).astype(q_BTHK.dtype)
    out_BGHTV = jnp.einsum("BGHTS,BSGV->BGHTV", weight_BGHTS, v_BSGV)
    return jnp.moveaxis(out_BGHTV, 3, 1).reshape(*q_BTHK.shape[:3], -1)


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
