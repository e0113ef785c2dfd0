"""Rotary position embedding (docs/architecture.md §4)."""

import math

import jax.numpy as jnp
import numpy as np

from ling_jax.config import ModelConfig, Yarn


def inverse_frequencies(dims: int, theta: float, scaling: Yarn | None) -> tuple[np.ndarray, float]:
    """Float64 [dims/2] inverse frequencies and the factor on cos and sin, YaRN applied where it is given."""
    exponents = np.arange(0, dims, 2, dtype=np.float64) / dims
    plain = theta**-exponents
    if scaling is None:
        return plain, 1.0
    low, high = (_yarn_dim(dims, theta, scaling, beta) for beta in (scaling.beta_fast, scaling.beta_slow))
    low, high = max(math.floor(low), 0), min(math.ceil(high), dims - 1)
    span = max(high - low, 0.001)
    ramp = np.clip((np.arange(dims // 2, dtype=np.float64) - low) / span, 0.0, 1.0)
    return plain / scaling.factor * ramp + plain * (1.0 - ramp), _attention_factor(scaling)


def _yarn_dim(dims: int, theta: float, scaling: Yarn, rotations: float) -> float:
    """The (fractional) frequency index that turns `rotations` times over the original length."""
    return dims * math.log(scaling.original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))


def yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _attention_factor(scaling: Yarn) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor, 1.0)


def rope_table(positions, dims: int, config: ModelConfig):
    """(cos, sin), each [B, T, dims/2], of integer positions [B, T]; float32, or float64 for float64 compute."""
    frequencies, factor = inverse_frequencies(dims, config.rope_theta, config.rope_scaling)
    dtype = jnp.promote_types(config.compute_dtype, jnp.float32)
    angles = positions[..., None].astype(dtype) * jnp.asarray(frequencies, dtype)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate_half(x_BTHK, table):
    """Rotates the first dims of each head, pairs (j, j + n/2) where the table has n/2 columns; the rest passes."""
    cos, sin = (t[:, :, None, :] for t in table)
    half = cos.shape[-1]
    a, b, rest = jnp.split(x_BTHK.astype(cos.dtype), [half, 2 * half], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x_BTHK.dtype)


def rotate_interleaved(x_BTHK, table):
    """Rotates pairs (2j, 2j+1) of all dims."""
    cos, sin = (t[:, :, None, :] for t in table)
    x = x_BTHK.astype(cos.dtype).reshape(*x_BTHK.shape[:-1], -1, 2)
    a, b = x[..., 0], x[..., 1]
    rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.reshape(x_BTHK.shape).astype(x_BTHK.dtype)
