"""Root-mean-square norms (docs/architecture.md §3). Statistics are in at least float32, the result in x's dtype."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · weight over the last axis; x [..., D], weight [D]."""
    return _normalise(x, eps) * weight.astype(x.dtype)


def group_rms_norm(x_BTHV: jax.Array, weight_HV: jax.Array, num_groups: int, eps: float) -> jax.Array:
    """RMS norm over all dims of each of `num_groups` groups of neighbouring heads; x [B, T, H, V], weight [H, V]."""
    grouped = x_BTHV.reshape(*x_BTHV.shape[:2], num_groups, -1)
    return _normalise(grouped, eps).reshape(x_BTHV.shape) * weight_HV.astype(x_BTHV.dtype)


def _normalise(x, eps: float):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)).astype(x.dtype)
