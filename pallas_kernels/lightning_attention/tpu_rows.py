"""The row-wise parts of a Lightning layer before and after attention, on blocks in VMEM, with gradients.

docs/architecture.md §5, steps 2, 4 and 5: per-head norm and rotation of queries and keys; group norm and gate of the
output. All in float32.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lightning_attention.tpu_blocks import CHUNK, LANES, dot

EIGHT = 8  # sublanes; sums over rows are kept in this many parts


class Rotation(NamedTuple):
    """x cos + swap(x) sin, where swap exchanges the halves of the rotated dims."""

    cos: jax.Array  # [C, K], 1 after the rotated dims
    sin: jax.Array  # [C, K], negative in the first half, 0 after the rotated dims
    half: int


def rotation_lanes(cos: jax.Array, sin: jax.Array, key_dim: int) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of `Rotation`, [B, T, K] float32, from the rope table [B, T, n/2]."""
    rest = ((0, 0), (0, 0), (0, key_dim - 2 * cos.shape[-1]))
    cos, sin = cos.astype(jnp.float32), sin.astype(jnp.float32)
    return (
        jnp.pad(jnp.concatenate([cos, cos], axis=-1), rest, constant_values=1),
        jnp.pad(jnp.concatenate([-sin, sin], axis=-1), rest),
    )


def inverse_rms(vectors: Sequence[Any], eps: float) -> list:
    """1 / rms, [C, 1] float32, of each vector [C, D]; a list of arrays is one vector over all their dims.

    A reciprocal root takes ten instructions and one lane per row, so all vectors share the lanes of one array.
    """
    packed, lane = 1.0, lax.broadcasted_iota(jnp.int32, (CHUNK, LANES), 1)
    for number, parts in enumerate(vectors):
        parts = parts if isinstance(parts, list) else [parts]
        mean = _row_sums(sum(jnp.square(x.astype(jnp.float32)) for x in parts), parts[0].dtype, LANES)
        packed = jnp.where(lane == number, mean * (1 / (len(parts) * parts[0].shape[1])), packed)
    roots = lax.rsqrt(packed + eps)
    return [roots[:, number : number + 1] for number in range(len(vectors))]


def normed_and_rotated(x: jax.Array, inverse: jax.Array, weight: jax.Array, rotation: Rotation) -> jax.Array:
    """x · inverse · weight, rotated, [C, K] float32; x [C, K], inverse rms [C, 1], weight [1, K]."""
    # The weight multiplies the tables, which all heads share; the swap runs in the narrow dtype of x.
    swapped = _swap(x, rotation.half).astype(jnp.float32) * (rotation.sin * _swap(weight, rotation.half))
    return (x.astype(jnp.float32) * (rotation.cos * weight) + swapped) * inverse


def normed_and_rotated_gradients(
    x: jax.Array, inverse: jax.Array, weight: jax.Array, rotation: Rotation, d_out: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(dx [C, K], gradient of the weight in eight parts [8, K]), float32."""
    x_hat = x.astype(jnp.float32) * inverse
    swapped = _swap(d_out, rotation.half).astype(jnp.float32)
    d_normed = d_out.astype(jnp.float32) * rotation.cos - swapped * rotation.sin
    along = d_normed * x_hat
    mean = _row_sums(along * weight, x.dtype, x.shape[1]) * (1 / x.shape[1])
    return inverse * (d_normed * weight - x_hat * mean), sum_rows(along)


def gated(
    group: list[jax.Array], inverse: jax.Array, weight: list[jax.Array], gate: list[jax.Array]
) -> list[jax.Array]:
    """Each head [C, V] of a norm group · inverse rms [C, 1] · weight [1, V] · sigmoid(gate); float32."""
    return [o.astype(jnp.float32) * inverse * (w * _sigmoid(g)) for o, w, g in zip(group, weight, gate, strict=True)]


def gated_gradients(
    group: list[jax.Array], inverse: jax.Array, weight: list[jax.Array], gate: list[jax.Array], d_out: list[jax.Array]
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """(d_group, d_gate, gradients of the weights in eight parts [8, V]), each a list over heads."""
    opened = [_sigmoid(g) for g in gate]
    normed = [o.astype(jnp.float32) * inverse for o in group]
    d_opened = [d.astype(jnp.float32) * s for d, s in zip(d_out, opened, strict=True)]
    parts = [d * n for d, n in zip(d_opened, normed, strict=True)]
    along = [p * w for p, w in zip(parts, weight, strict=True)]
    dims = group[0].shape[1]
    mean = _row_sums(sum(along), gate[0].dtype, dims) * (1 / (len(group) * dims))
    d_group = [inverse * (d * w - n * mean) for d, w, n in zip(d_opened, weight, normed, strict=True)]
    d_gate = [a * (1 - s) for a, s in zip(along, opened, strict=True)]
    return d_group, d_gate, [sum_rows(p) for p in parts]


def _row_sums(x, dtype, lanes: int):
    """Sums over D of x [C, D] float32, equal in all `lanes` columns; the idle matrix units compute them."""
    return dot(x.astype(dtype), jnp.ones((x.shape[1], lanes), dtype))


def sum_rows(x: jax.Array) -> jax.Array:
    """The sum over the rows of x [C, D] in eight parts, [8, D], by additions of whole registers."""
    return jnp.sum(x.reshape(-1, EIGHT, x.shape[1]), axis=0)


def _sigmoid(x):
    """sigmoid(x) in float32 by tanh; a division takes a dozen more instructions."""
    return 0.5 * jnp.tanh(0.5 * x.astype(jnp.float32)) + 0.5


def _swap(x, half: int):
    """x [C, K] with the halves of its first 2 · half lanes exchanged, in 32-bit registers."""
    if half == 0 or x.shape[0] == 1:
        return x if half == 0 else jnp.where(_lane(x) < half, jnp.roll(x, -half, 1), jnp.roll(x, half, 1))
    bits = pltpu.bitcast(x, jnp.int32)
    swapped = jnp.where(_lane(bits) < half, pltpu.roll(bits, x.shape[1] - half, 1), pltpu.roll(bits, half, 1))
    return pltpu.bitcast(swapped, x.dtype)


def _lane(x):
    return lax.broadcasted_iota(jnp.int32, x.shape, 1)
