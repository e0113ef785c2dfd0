"""Shared parts of the TPU kernels of Lightning attention: blocks, matmuls, decays and runs of tokens.

A grid step covers CHUNKS chunks of a few heads. If every row is one document of full length, the decays are constant
and stored in tables at the first step. Otherwise the kernels process a chunk run by run, a run being the part of one
document in the chunk. The rows outside of the run are masked bitwise, so not even a NaN passes between documents.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import tpu

CHUNK = 128  # tokens; fills the 128 x 128 matrix units, and 256 would need more work inside chunks
CHUNKS = 2  # per grid step and stored state; backward recomputes the state in between
STEP = CHUNK * CHUNKS
LANES = tpu.LANES
PARAMS = pltpu.CompilerParams(
    dimension_semantics=("parallel", "parallel", "arbitrary"),  # cores split rows and heads
    vmem_limit_bytes=48 * 2**20,
)


class Size(NamedTuple):
    """The size of a grid step's block."""

    heads: int
    key_dim: int
    value_dim: int

    @property
    def scale(self) -> float:
        """K^-0.5."""
        return self.key_dim**-0.5

    def keys(self, head: int) -> slice:
        """The columns of a head's queries or keys."""
        return slice(head * self.key_dim, (head + 1) * self.key_dim)

    def values(self, head: int) -> slice:
        """The columns of a head's values."""
        return slice(head * self.value_dim, (head + 1) * self.value_dim)


class Run(NamedTuple):
    """Rows [start, end) of a chunk that belong to one document."""

    start: jax.Array
    end: jax.Array
    fresh: jax.Array  # a document other than the row's first begins here: the state restarts at 0


class Decays(NamedTuple):
    """The decays of one head."""

    read: jax.Array  # [C, max(K, V)] of the incoming state at a token, times K^-0.5
    write: jax.Array  # [C, max(K, V)] of a token in the outgoing state
    carry: jax.Array  # [1, V] of the incoming state in the outgoing one


class Tables(NamedTuple):
    """Decays of whole chunks, one per head, float32 in VMEM."""

    within: jax.Array  # [heads, C, C] from token j to token i >= j, times K^-0.5
    back: jax.Array | None  # the transpose of `within`, for backward
    read: jax.Array | None  # as in `Decays`; None if runs compute their own
    write: jax.Array | None


def tables_scratch(size: Size, back: bool, runs: bool) -> Tables:
    """Scratch memory for the tables that the options need."""
    square = pltpu.VMEM((size.heads, CHUNK, CHUNK), jnp.float32)
    wide = None if runs else pltpu.VMEM((size.heads, CHUNK, max(size.key_dim, size.value_dim)), jnp.float32)
    return Tables(square, square if back else None, wide, wide)


def block_log_decays(log_decay_ref: Any, size: Size) -> list:
    """The log decays of this grid step's heads, from those of all heads in scalar memory."""
    first = pl.program_id(1) * size.heads
    return [log_decay_ref[first + head] for head in range(size.heads)]


def fill_tables(tables: Tables, log_decays: list, size: Size) -> None:
    """Computes the tables, at the first grid step."""
    i, j = (lax.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), axis) for axis in (0, 1))
    for head, log_decay in enumerate(log_decays):

        def decay(steps, log_decay=log_decay):
            return jnp.exp(log_decay * jnp.maximum(steps, 0).astype(jnp.float32))

        tables.within[head] = jnp.where(i >= j, decay(i - j) * size.scale, 0)
        if tables.back is not None:
            tables.back[head] = jnp.where(j >= i, decay(j - i) * size.scale, 0)
        if tables.read is not None:
            rows = lax.broadcasted_iota(jnp.int32, tables.read.shape[1:], 0)
            tables.read[head] = decay(rows + 1) * size.scale
            tables.write[head] = decay(CHUNK - 1 - rows)


def decays_of(head: int, run: Run | None, tables: Tables, log_decays: list, size: Size) -> Decays:
    """The decays of a head in a run; None: in a whole chunk, from the tables."""
    log_decay = log_decays[head]
    start, end = (0, CHUNK) if run is None else (run.start, run.end)
    count = jnp.full((1, size.value_dim), end - start, jnp.int32).astype(jnp.float32)
    carry = jnp.exp(log_decay * count)
    if run is None:
        return Decays(tables.read[head], tables.write[head], carry)
    rows = lax.broadcasted_iota(jnp.int32, (CHUNK, max(size.key_dim, size.value_dim)), 0)
    # Rows outside of the run are masked; their steps must only not overflow.

    def steps(count):
        return jnp.maximum(count, 0).astype(jnp.float32)

    read = jnp.exp(log_decay * steps(rows + (1 - start))) * size.scale
    return Decays(read, jnp.exp(log_decay * steps(end - 1 - rows)), carry)


# ---------------------------------------------------------------- matmuls


def dot(a: jax.Array, b: jax.Array, *, over: tuple[int, int] = (1, 0)) -> jax.Array:
    """a [m, c] times b [c, n] in float32, or over other axes; float32 operands are not rounded to bfloat16."""
    return tpu.dot(a, b, (((over[0],), (over[1],)), ((), ())))


def dot_transposed(a: jax.Array, b: jax.Array) -> jax.Array:
    """a^T b with a [C, m] in float32, cast to b's dtype after the transpose.

    A float32 transpose leaves the matrix units free; a bfloat16 transpose does not.
    """
    return dot(a.T.astype(b.dtype), b)


# ---------------------------------------------------------------- runs of tokens


class Rows(NamedTuple):
    """The documents of a kernel's rows. Kernels take None instead if each row is one document of full length."""

    length: int  # tokens of a row; the rest of the last block is padding
    ids: jax.Array | None  # [B, 1, T] int32 segment ids
    before: jax.Array | None  # the same array, read one step earlier
    first: jax.Array | None  # [B] position of the first live token, whose document owns the initial state


def rows_of(segment_ids: jax.Array | None, length: int, initial: bool) -> Rows | None:
    """The Rows of segment ids [B, T]; None if each row is one document of full length. `initial`: with a state."""
    if segment_ids is None:
        return Rows(length, None, None, None) if length % STEP else None
    first = jnp.argmax(segment_ids != 0, axis=1).astype(jnp.int32) if initial else None
    return Rows(length, segment_ids[:, None], segment_ids[:, None], first)


def rows_spec(rows: Rows, step_of: Callable[[Any], Any]) -> Rows:
    """BlockSpecs of `rows`; step_of(t) is the step of tokens at grid index t."""
    if rows.ids is None:
        return Rows(None, None, None, None)
    ids = pl.BlockSpec((1, 1, STEP), lambda b, h, t: (b, 0, step_of(t)))
    before = pl.BlockSpec((1, 1, STEP), lambda b, h, t: (b, 0, jnp.maximum(step_of(t) - 1, 0)))
    return Rows(None, ids, before, None if rows.first is None else pl.BlockSpec(memory_space=pltpu.SMEM))


def for_each_run(rows: Rows, step: Any, chunk: int, body: Callable[[Run], Any], *, reverse: bool = False) -> None:
    """Calls body(run) for each live run of a chunk of a step, in order."""
    begin = step * STEP + chunk * CHUNK
    if rows.ids is None:
        end = jnp.clip(rows.length - begin, 0, CHUNK)
        pl.when(end > 0)(lambda: body(Run(jnp.int32(0), end, jnp.bool_(False))))
        return
    first = None if rows.first is None else rows.first[pl.program_id(0)]
    lane, ids, change = _changes(rows, begin, step, chunk)
    marks = jnp.where(ids != 0, 1, 0) + jnp.where(change, 2, 0)

    def visit(place):
        if reverse:
            start, end = _lanes(jnp.max, change & (lane < place), lane, 0), place
        else:
            start, end = place, _lanes(jnp.min, change & (lane > place), lane, CHUNK)
        mark = _lanes(jnp.max, lane == start, marks, 0)
        fresh = mark >= 2
        if first is not None:
            fresh &= begin + start != first
        pl.when(mark & 1 == 1)(lambda: body(Run(start, end, fresh)))
        return start if reverse else end

    def more(place):
        return place > 0 if reverse else place < CHUNK

    lax.while_loop(more, visit, jnp.int32(CHUNK if reverse else 0))


def _changes(rows: Rows, begin, step, chunk: int):
    """[1, C] each: the lane, its segment id, whether the id differs from that of the token before."""
    lane = lax.broadcasted_iota(jnp.int32, (1, CHUNK), 1)
    ids = jnp.where(begin + lane < rows.length, rows.ids[0, :, pl.ds(chunk * CHUNK, CHUNK)], 0)
    if chunk:
        before = rows.ids[0, :, pl.ds((chunk - 1) * CHUNK, CHUNK)]
    else:
        before = jnp.where(step > 0, rows.before[0, :, pl.ds(STEP - CHUNK, CHUNK)], 0)
    previous = jnp.where(lane == 0, pltpu.roll(before, 1, 1), pltpu.roll(ids, 1, 1))
    return lane, ids, ids != previous


def _lanes(reduce, where, values, other: int):
    """A reduction of int32 values where `where` holds; they go through float32, which holds them exactly."""
    return reduce(jnp.where(where, values, other).astype(jnp.float32)).astype(jnp.int32)


def cut(x: jax.Array, run: Run | None) -> jax.Array:
    """x [C, D] with zeros outside of the run, NaN included."""
    if run is None:
        return x
    bits = pltpu.bitcast(x, jnp.int32)
    return pltpu.bitcast(bits & _inside(run, bits.shape), x.dtype)


def store(ref: Any, columns: slice, rows: slice, x: jax.Array, run: Run | None) -> None:
    """Writes x [C, D] to the run's rows of ref [1, STEP, …]; the other rows keep their values."""
    x = x.astype(ref.dtype)
    if run is not None:
        old, new = (pltpu.bitcast(a, jnp.int32) for a in (ref[0, rows, columns], x))
        x = pltpu.bitcast(old | new & _inside(run, new.shape), x.dtype)  # the run's rows are 0 before
    ref[0, rows, columns] = x


def _inside(run: Run, shape):
    """int32 masks of the rows of a run; an int32 holds CHUNK / shape[0] rows."""
    packed = CHUNK // shape[0]
    bits = 32 // packed
    row = lax.broadcasted_iota(jnp.int32, shape, 0) * packed
    mask = jnp.zeros(shape, jnp.int32)
    for part in range(packed):
        ones = np.int32(np.uint32((2**bits - 1) << bits * part).view(np.int32))
        inside = (row + part >= run.start) & (row + part < run.end)
        mask = mask | jnp.where(inside, ones, 0)
    return mask
