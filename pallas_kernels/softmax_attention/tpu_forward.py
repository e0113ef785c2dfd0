"""Softmax attention on a TPU, forward: the scores of a block stay on chip.

Scores are [keys, queries]: a statistic of queries is then a row, and maximum and sum over keys use whole registers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.softmax_attention.window import LOG_ZERO, Window, flat, visible_blocks
from pallas_kernels.tpu import LANES, VMEM_LIMIT, dot

PART = 512  # keys; exponentials of a part overlap with the scores of the next. Our choice, by static cost
LOG2E = 1.4426950408889634
NT = (((1,), (1,)), ((), ()))  # a b^T
NN = (((1,), (0,)), ((), ()))  # a b
TN = (((0,), (0,)), ((), ()))  # a^T b


class Size(NamedTuple):
    """Tokens in a block."""

    queries: int
    keys: int


def block_size(length: int, limit: int) -> int:
    """The largest divisor of the length up to `limit` in whole lanes; the length itself if there is none."""
    fits = [block for block in range(LANES, min(limit, length) + 1, LANES) if length % block == 0]
    return max(fits, default=length)


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    window: Window,
    scale: float,
    size: Size,
    pairs: int,
    out_dtype: DTypeLike,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """(out [B, H, T, V], logsumexp of the scores [B, H, T] float32).

    `pairs` is the number of computed (query, key) pairs of a row, for the cost estimate only.
    """
    (batch, heads, length, key_dim), (groups, keys, value_dim) = q.shape, v.shape[1:]
    steps, share = keys // size.keys, heads // groups
    blocks = visible_blocks(window, size.queries, size.keys, keys)
    out_shape = [
        jax.ShapeDtypeStruct((batch, heads, length, value_dim), out_dtype),
        jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
    ]
    times = share * pairs / (size.queries * keys)  # reads of keys and values

    def keys_at(b, h, i, j, blocks_ref):
        start, stop, *_ = scalars(blocks_ref, 4, b, i, batch)
        return b, h // share, jnp.clip(j, start, jnp.clip(stop - 1, 0, steps - 1)), 0

    def query(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, size.queries, width), lambda b, h, i, j, _: (b, h, i, 0))

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
    """The cost of `pairs` (query, key) pairs; `moved` are (array, number of reads or writes)."""
    bytes_accessed = sum(int(times * x.size) * jnp.dtype(x.dtype).itemsize for x, times in moved)
    return pl.CostEstimate(flops=flops, bytes_accessed=bytes_accessed, transcendentals=pairs)


def _kernel(
    blocks_ref, window_ref, q_ref, k_ref, v_ref, out_ref, logsumexp_ref, largest_ref, total_ref, sum_ref,
    *, scale: float, size: Size, batch: int,
):  # fmt: skip
    step = pl.program_id(3)

    @pl.when(step == 0)
    def _():
        largest_ref[...] = jnp.full_like(largest_ref, LOG_ZERO)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @when_visible(scalars(blocks_ref, 4, pl.program_id(0), pl.program_id(2), batch), step)
    def _(whole: bool):
        parts = [pl.ds(at, min(PART, size.keys - at)) for at in range(0, size.keys, PART)]
        scores = [dot(k_ref[0, 0, part], q_ref[0, 0], NT) for part in parts]
        largest, total, weighted = largest_ref[...], total_ref[...], sum_ref[...]
        for part, score in zip(parts, scores, strict=True):
            if not whole:
                score = jnp.where(visible(window_ref, step * size.keys + part.start, score.shape), score, -jnp.inf)
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
        logsumexp_ref[0, 0] = jnp.where(none, LOG_ZERO, logsumexp)


def scalars(tables_ref: Any, count: int, row: Any, number: Any, batch: int) -> list:
    """The entry of each of the `flat` tables for a block of a row."""
    width = tables_ref.shape[0] // (count * batch)
    return [tables_ref[(n * batch + row) * width + number] for n in range(count)]


def when_visible(blocks: Sequence[Any], keys: Any) -> Callable[[Callable[[bool], Any]], None]:
    """A decorator that runs function(whole) if a query attends to a key of block `keys`.

    `whole` is True if every query attends to every key of the block. `blocks` is the query block's entry of `Blocks`.
    """
    start, stop, whole_start, whole_stop = blocks
    some, whole = (keys >= start) & (keys < stop), (keys >= whole_start) & (keys < whole_stop)

    def run(function):
        pl.when(whole)(lambda: function(True))
        pl.when(some & ~whole)(lambda: function(False))

    return run


def visible(window_ref: Any, first_key: Any, shape: tuple[int, ...]) -> jax.Array:
    """[keys, queries] bool: whether the query attends to the key."""
    key = first_key + lax.broadcasted_iota(jnp.int32, shape, 0)
    return (key >= window_ref[0, 0:1]) & (key <= window_ref[0, 1:2])
