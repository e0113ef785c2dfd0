"""What the kernels for TPUs share."""

import jax.numpy as jnp
from jax import lax

LANES = 128
VMEM_LIMIT = 56 * 2**20  # of 64 MiB of the smallest chip


def dot(a, b, dimensions):
    """float32 sums; float32 operands to all digits, as the CPU multiplies them, whatever the default precision."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
