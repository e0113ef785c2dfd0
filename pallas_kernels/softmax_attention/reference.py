"""The reference of softmax attention in plain jax.numpy."""

import jax
import jax.numpy as jnp


def softmax_attention_reference(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, docs_BT: jax.Array | None, scale: float
) -> jax.Array:
    """`softmax_attention_tpu` with all scores in memory; same arguments and result."""
    length, heads = q_BTHK.shape[1:3]
    k_BTHK, v_BTHV = (jnp.repeat(x, heads // k_BTGK.shape[2], axis=2) for x in (k_BTGK, v_BTGV))
    wide = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    score_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BTHK, preferred_element_type=wide) * scale
    allowed_BTS = jnp.tril(jnp.ones((1, length, length), bool))
    if docs_BT is not None:
        allowed_BTS &= ((docs_BT[:, :, None] == docs_BT[:, None]) & (docs_BT[:, :, None] > 0)) | jnp.eye(
            length, dtype=bool
        )
    weight_BHTS = jax.nn.softmax(jnp.where(allowed_BTS[:, None], score_BHTS, -jnp.inf), axis=-1)
    return jnp.einsum("BHTS,BSHV->BTHV", weight_BHTS.astype(v_BTHV.dtype), v_BTHV)
