"""References: the recurrence token by token, which tests compare the kernels with."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pallas_kernels.lightning_attention.documents import document_ids


def lightning_attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    initial_state: jax.Array | None,
    segment_ids: ArrayLike | None,
) -> tuple[jax.Array, jax.Array]:
    """S_t = exp(log_decay) S_{t-1} + k_t^T v_t, out_t = K^-0.5 q_t S_t, token by token; as `lightning_attention`."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    docs = document_ids(jnp.ones(q.shape[:2], jnp.int32) if segment_ids is None else segment_ids)
    decay = jnp.exp(log_decay.astype(dtype))[:, None, None]
    if initial_state is None:
        initial_state = jnp.zeros((q.shape[0], *q.shape[2:], v.shape[3]))

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


def lightning_layer_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gate: jax.Array,
    norms: Any,
    rotation: tuple[jax.Array, jax.Array],
    log_decay: jax.Array,
    initial_state: jax.Array | None,
    segment_ids: ArrayLike | None,
    *,
    num_heads: int,
    num_groups: int,
    half: int,
    eps: float,
) -> tuple[jax.Array, jax.Array]:
    """`lightning_layer_tpu` in jax.numpy (docs/architecture.md §5, steps 2 to 5)."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    cos, sin = (table[:, :, None] for table in rotation)

    def split(x, parts: int):
        return x.astype(dtype).reshape(*x.shape[:2], parts, -1)

    def normed(x):
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)

    def rotated(x_BTHK):
        first, second, rest = jnp.split(x_BTHK, (half, 2 * half), axis=-1)
        return x_BTHK * cos + jnp.concatenate([second, first, rest], axis=-1) * sin

    q_BTHK, k_BTHK = (rotated(normed(split(x, num_heads)) * w) for x, w in ((q, norms.q), (k, norms.k)))
    out_BTHV, state = lightning_attention_reference(
        q_BTHK, k_BTHK, split(v, num_heads), log_decay, initial_state, segment_ids
    )
    out_BTX = normed(split(out_BTHV, num_groups)).reshape(v.shape) * norms.out.reshape(-1)
    return (out_BTX * jax.nn.sigmoid(gate.astype(dtype))).astype(v.dtype), state
