"""Gumbel noise with the bits of `jax.random`, as one operation.

On a CPU JAX compiles its generator as a loop of many small operations, which takes as long as a layer of a small model.
"""

import jax
import jax.numpy as jnp
import numpy as np

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)  # Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers", table 2)
PARITY = np.uint32(0x1BD11BDA)


def gumbel_noise(seed_N: jax.Array, number_N: jax.Array, size: int, dtype: jnp.dtype) -> jax.Array:
    """[N, size] float32 or float64: row n is `jax.random.gumbel(fold_in(key(seed[n]), number[n]), (size,), dtype)`.

    seed [N] uint32, number [N] int32.
    """
    zero_N = jnp.zeros_like(seed_N)
    key_N1 = (x[:, None] for x in threefry((zero_N, seed_N), (zero_N, number_N.astype(jnp.uint32))))
    place_1W = jnp.arange(size, dtype=jnp.uint32)[None]
    high_NW, low_NW = threefry(tuple(key_N1), (jnp.zeros_like(place_1W), place_1W))
    info = jnp.finfo(dtype)
    bits_NW = high_NW ^ low_NW if info.bits == 32 else high_NW.astype(jnp.uint64) << 32 | low_NW.astype(jnp.uint64)
    one = np.array(1, dtype).view(bits_NW.dtype)
    uniform_NW = jax.lax.bitcast_convert_type(bits_NW >> (info.bits - info.nmant) | one, dtype) - 1
    return -jnp.log(-jnp.log(jnp.maximum(uniform_NW * (1 - info.tiny) + info.tiny, info.tiny)))


def threefry(key: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds: two uint32 arrays of random bits from a key and a counter of two uint32 each."""
    keys = *key, key[0] ^ key[1] ^ PARITY
    a, b = block[0] + keys[0], block[1] + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = a + b
            b = a ^ (b << rotation | b >> (32 - rotation))
        a, b = a + keys[(group + 1) % 3], b + keys[(group + 2) % 3] + np.uint32(group + 1)
    return a, b
