"""Rotary position embedding (docs/architecture.md §4)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.config import ModelConfig, Yarn

RopeTable = tuple[jax.Array, jax.Array]  # (cos, sin), each [B, T, rotated dims / 2] in at least float32


class Ropes(NamedTuple):
    """The tables of a model's layers at the same positions."""

    heads: RopeTable  # of Lightning and GQA heads
    latents: RopeTable  # of MLA's rotated dims


def rope_tables(positions: jax.Array, config: ModelConfig) -> Ropes:
    """All tables at integer positions [B, T]."""
    return Ropes(*(rope_table(positions, dims, config) for dims in (config.rotary_dim, config.rope_dim)))


def inverse_frequencies(dims: int, theta: float, scaling: Yarn | None) -> tuple[np.ndarray, float]:
    """(inverse frequencies, float64 [dims/2]; factor on cos and sin), with YaRN if `scaling` is given."""
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
    """The fractional index of the frequency that makes `rotations` turns over the original length."""
    return dims * math.log(scaling.original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention scale 0.1 · mscale · ln(factor) + 1; 1 for factors up to 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _attention_factor(scaling: Yarn) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor, 1.0)


def rope_table(positions: jax.Array, dims: int, config: ModelConfig) -> RopeTable:
    """(cos, sin), each [B, T, dims/2], at integer positions [B, T]; at least float32."""
    frequencies, factor = inverse_frequencies(dims, config.rope_theta, config.rope_scaling)
    dtype = jnp.promote_types(config.compute_dtype, jnp.float32)
    angles = positions[..., None].astype(dtype) * jnp.asarray(frequencies, dtype)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate_half(x_BTHK: jax.Array, table: RopeTable) -> jax.Array:
    """Rotates the first n dims of each head in pairs (j, j + n/2); the other dims stay. The table has n/2 columns."""
    cos, sin = (t[:, :, None, :] for t in table)
    half = cos.shape[-1]
    a, b, rest = jnp.split(x_BTHK.astype(cos.dtype), [half, 2 * half], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x_BTHK.dtype)


def rotate_interleaved(x_BTHK: jax.Array, table: RopeTable) -> jax.Array:
    """Rotates all dims of each head in pairs (2j, 2j + 1)."""
    cos, sin = (t[:, :, None, :] for t in table)
    x = x_BTHK.astype(cos.dtype).reshape(*x_BTHK.shape[:-1], -1, 2)
    a, b = x[..., 0], x[..., 1]
    rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.reshape(x_BTHK.shape).astype(x_BTHK.dtype)
