"""The recurrence as it is written: slow, obvious, what the kernels are tested against."""

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_attention.documents import document_ids


def lightning_attention_reference(q, k, v, log_decay, initial_state, segment_ids):
    """S_t = exp(log_decay) S_{t-1} + k_t^T v_t, out_t = K^-0.5 q_t S_t, one token after the other."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    docs = document_ids(jnp.ones(q.shape[:2], jnp.int32) if segment_ids is None else segment_ids)
    decay = jnp.exp(log_decay.astype(dtype))[:, None, None]

    def token(carry, inputs):
        state, doc = carry
        q_BHK, k_BHK, v_BHV, new_doc = inputs
        fresh = (new_doc > doc) & (doc > 0)  # the initial state belongs to the row's first document
        live = (new_doc > 0)[:, None, None, None]
        state = jnp.where(fresh[:, None, None, None], 0, state)
        state = jnp.where(live, decay * state + jnp.einsum("BHK,BHV->BHKV", k_BHK, v_BHV), state)
        out_BHV = jnp.where(live[..., 0], jnp.einsum("BHK,BHKV->BHV", q_BHK, state), 0) * q.shape[-1] ** -0.5
        return (state, jnp.maximum(doc, new_doc)), out_BHV

    inputs = [jnp.moveaxis(x, 1, 0) for x in (q.astype(dtype), k.astype(dtype), v.astype(dtype), docs)]
    carry = (initial_state.astype(dtype), jnp.zeros_like(docs[:, 0]))
    (state, _), out = jax.lax.scan(token, carry, tuple(inputs))
    return jnp.moveaxis(out, 0, 1).astype(v.dtype), state
