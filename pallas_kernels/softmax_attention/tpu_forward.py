"""Softmax attention on a TPU, forward: scores of a block stay on chip. They stand [keys, queries], so that what belongs
to a query is a row: largest and sum over keys are taken of whole registers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.softmax_attention.window import LEAST, Window, flat, seen_blocks
from pallas_kernels.tpu import LANES, VMEM_LIMIT, dot

PART = 512  # keys whose exponentials are taken while the next ones' scores are made; our choice, by static cost
LOG2E = 1.4426950408889634
NT = (((1,), (1,)), ((), ()))  # a b^T
NN = (((1,), (0,)), ((), ()))  # a b
TN = (((0,), (0,)), ((), ()))  # a^T b


class Size(NamedTuple):
    """Tokens of a block."""

    queries: int
    keys: int


def block_of(length: int, most: int) -> int:
    """The largest divisor of the length up to `most` in whole lanes, or the whole length where there is none."""
    fits = [block for block in range(LANES, min(most, length) + 1, LANES) if length % block == 0]
    return max(fits, default=length)


def forward(q, k, v, window: Window, scale: float, size: Size, pairs: int, out_dtype, interpret: bool):
    """(out [B, H, T, V], logsumexp of the scores [B, H, T] float32).

    `pairs` of queries and keys of a row are computed, as far as the compiler is to know.
    """
    (batch, heads, length, key_dim), (groups, keys, value_dim) = q.shape, v.shape[1:]
    steps, share = keys // size.keys, heads // groups
    blocks = seen_blocks(window, size.queries, size.keys, keys)
    out_shape = [
        jax.ShapeDtypeStruct((batch, heads, length, value_dim), out_dtype),
        jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
    ]
    times = share * pairs / (size.queries * keys)  # that keys and values are read

    def keys_at(b, h, i, j, blocks_ref):
        start, stop, *_ = scalars(blocks_ref, 4, b, i, batch)
        return b, h // share, jnp.clip(j, start, jnp.clip(stop - 1, 0, steps - 1)), 0

    query = lambda width: pl.BlockSpec((1, 1, size.queries, width), lambda b, h, i, j, _: (b, h, i, 0))  # noqa: E731
    out, logsumexp = pl.pallas_call(
        functools.partial(_kernel, scale=scale, size=size, batch=batch),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, heads, length // size.queries, steps),
            in_specs=[
                pl.BlockSpec((1, 2, size.queries), lambda b, h, i, j, _: (b, 0, i)),
                query(key_dim),
                pl.BlockSpec((1, 1, size.keys, key_dim), keys_at),
                pl.BlockSpec((1, 1, size.keys, value_dim), keys_at),
            ],
            out_specs=[query(value_dim), pl.BlockSpec((1, 1, 1, size.queries), lambda b, h, i, j, _: (b, h, 0, i))],
            scratch_shapes=[
                pltpu.VMEM((1, size.queries), jnp.float32),
                pltpu.VMEM((1, size.queries), jnp.float32),
                pltpu.VMEM((value_dim, size.queries), jnp.float32),
            ],
        ),
        out_shape=out_shape,
        compiler_params=PARAMS,
        cost_estimate=cost(
            2 * batch * heads * pairs * (key_dim + value_dim),
            batch * heads * pairs,
            (q, 1),
            (k, times),
            (v, times),
            *((x, 1) for x in out_shape),
        ),
        interpret=interpret,
        name="softmax_forward",
    )(flat(*blocks), jnp.stack(window, axis=1), q, k, v)
    return out, logsumexp[:, :, 0]


PARAMS = pltpu.CompilerParams(
    dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
)


def cost(flops: int, pairs: int, *moved: tuple[jax.Array, float]) -> pl.CostEstimate:
    """Of so many (query, key) pairs, arrays that move so many times each."""
    bytes_accessed = sum(int(times * x.size) * jnp.dtype(x.dtype).itemsize for x, times in moved)
    return pl.CostEstimate(flops=flops, bytes_accessed=bytes_accessed, transcendentals=pairs)


def _kernel(
    blocks_ref, window_ref, q_ref, k_ref, v_ref, out_ref, logsumexp_ref, largest_ref, total_ref, sum_ref,
    *, scale: float, size: Size, batch: int,
):  # fmt: skip
    step = pl.program_id(3)

    @pl.when(step == 0)
    def _():
        largest_ref[...] = jnp.full_like(largest_ref, LEAST)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @for_seen(scalars(blocks_ref, 4, pl.program_id(0), pl.program_id(2), batch), step)
    def _(whole: bool):
        parts = [pl.ds(at, min(PART, size.keys - at)) for at in range(0, size.keys, PART)]
        scores = [dot(k_ref[0, 0, part], q_ref[0, 0], NT) for part in parts]
        largest, total, weighted = largest_ref[...], total_ref[...], sum_ref[...]
        for part, score in zip(parts, scores, strict=True):
            if not whole:
                score = jnp.where(seen(window_ref, step * size.keys + part.start, score.shape), score, -jnp.inf)
            before, largest = largest, jnp.maximum(largest, jnp.max(score, axis=0, keepdims=True))
            weight, fade = (jnp.exp2((x - largest) * (scale * LOG2E)) for x in (score, before))
            total = fade * total + jnp.sum(weight, axis=0, keepdims=True)
            weighted = fade * weighted + dot(v_ref[0, 0, part], weight.astype(v_ref.dtype), TN)
        largest_ref[...], total_ref[...], sum_ref[...] = largest, total, weighted

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        total = total_ref[...]
        none = total == 0
        out_ref[0, 0] = (sum_ref[...] / jnp.where(none, 1, total)).T.astype(out_ref.dtype)
        logsumexp = largest_ref[...] * scale + jnp.log(jnp.where(none, 1, total))
        logsumexp_ref[0, 0] = jnp.where(none, LEAST, logsumexp)


def scalars(tables_ref, count: int, row, number, batch: int):
    """What every one of the `flat` tables says of a block in a row."""
    width = tables_ref.shape[0] // (count * batch)
    return [tables_ref[(n * batch + row) * width + number] for n in range(count)]


def for_seen(blocks, keys):
    """Runs a function of `whole` where some of these keys are seen: True where all are, by every query.

    `blocks` are those of the queries, as in `Blocks`.
    """
    start, stop, whole_start, whole_stop = blocks
    some, whole = (keys >= start) & (keys < stop), (keys >= whole_start) & (keys < whole_stop)

    def run(function):
        pl.when(whole)(lambda: function(True))
        pl.when(some & ~whole)(lambda: function(False))

    return run


def seen(window_ref, first_key, shape):
    """[keys, queries]: which keys each query sees."""
    key = first_key + lax.broadcasted_iota(jnp.int32, shape, 0)
    return (key >= window_ref[0, 0:1]) & (key <= window_ref[0, 1:2])
