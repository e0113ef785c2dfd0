"""Root-mean-square norms (docs/architecture.md §3): statistics in at least float32, the weight in the input's dtype."""

import jax
import jax.numpy as jnp


def rms_norm(x, weight, eps: float):
    """x / sqrt(mean(x²) + eps) · weight over the last axis; x [..., D], weight [D]."""
    return _normalise(x, eps) * weight.astype(x.dtype)


def group_rms_norm(x_BTHV, weight_HV, num_groups: int, eps: float):
    """RMS norm over each of `num_groups` groups of neighbouring heads, all their dims together."""
    grouped = x_BTHV.reshape(*x_BTHV.shape[:2], num_groups, -1)
    return _normalise(grouped, eps).reshape(x_BTHV.shape) * weight_HV.astype(x_BTHV.dtype)


def _normalise(x, eps: float):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)).astype(x.dtype)
