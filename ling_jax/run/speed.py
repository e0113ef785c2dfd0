"""The peak speed of a mesh, which MFU compares with."""

import time

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.chips import data_sheet_flops


def peak_flops(mesh: jax.sharding.Mesh) -> float:
    """Peak FLOP/s of a mesh: the data sheet's, or the measured rate of a large matmul where there is none.

    All CPU devices of a process share one machine; their rate is measured in float32, that of others in bfloat16.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        # A larger matmul has the same rate and would delay the start.
        return jax.process_count() * matmul_flops(1024, jnp.float32)
    return mesh.size * (data_sheet_flops(device) or matmul_flops(2048, jnp.bfloat16))


def matmul_flops(size: int, dtype: DTypeLike) -> float:
    """FLOP/s of a matmul of two [size, size] arrays on the first device, the best of five."""
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda x: x @ x)
    multiply(x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
