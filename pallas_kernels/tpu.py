"""Shared parts of the TPU kernels."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

LANES = 128
VMEM_LIMIT = 56 * 2**20  # bytes; the smallest chip has 64 MiB


def dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    """`lax.dot_general` with float32 sums; float32 operands multiply at full precision, whatever the default is."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
