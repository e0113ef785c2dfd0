"""The states between the chunks of a row on a GPU, and their gradients by the same recurrence in reverse."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.lightning_attention.gpu_marks import CHUNK, Marks, rows_where

COLUMNS = 64  # of a state in the registers of a program; our choice: at least two programs per head
PARAMS = plgpu.CompilerParams(num_warps=4, num_stages=2)


def fold_chunks(
    x: jax.Array,
    y: jax.Array,
    log_decay: jax.Array,
    initial: jax.Array,
    marks: Marks,
    *,
    scale: float,
    reverse: bool,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """(the state that enters each chunk [B, N, H, K, V] in x's dtype, the final state [B, H, K, V] float32).

    Forward: x = k, y = v, S <- decay S + Σ decay_to_end k^T v. In reverse: x = q, y = the outputs' gradients,
    dS <- decay dS + Σ decay_from_start q^T y, from the last chunk to the first; `initial` is the last state's gradient.
    x [B, N * CHUNK, H·K], y [B, N * CHUNK, H·V].
    """
    batch, heads, key_dim, value_dim = initial.shape
    length, chunks = x.shape[1], x.shape[1] // CHUNK
    columns = min(COLUMNS, value_dim)
    strips = value_dim // columns

    def row(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, size), lambda b, h, c: (b, 0))

    state = pl.BlockSpec((None, None, key_dim, columns), lambda b, h, c: (b, h, 0, c))
    return pl.pallas_call(
        functools.partial(_kernel, chunks=chunks, scale=scale, reverse=reverse),
        grid=(batch, heads, strips),
        in_specs=[
            pl.BlockSpec((None,), lambda b, h, c: (h,)),
            *map(row, (length, length, chunks, chunks, chunks)),
            state,
            pl.BlockSpec((None, length, key_dim), lambda b, h, c: (b, 0, h)),
            pl.BlockSpec((None, length, columns), lambda b, h, c: (b, 0, h * strips + c)),
        ],
        out_specs=[pl.BlockSpec((None, chunks, None, key_dim, columns), lambda b, h, c: (b, 0, h, 0, c)), state],
        out_shape=[
            jax.ShapeDtypeStruct((batch, chunks, heads, key_dim, value_dim), x.dtype),
            jax.ShapeDtypeStruct(initial.shape, jnp.float32),
        ],
        compiler_params=PARAMS,
        interpret=interpret,
        name="lightning_gpu_states",
    )(log_decay, *marks, initial, x, y)


def _kernel(
    log_decay_ref, docs_ref, counts_ref, first_ref, last_ref, total_ref, initial_ref, x_ref, y_ref,
    states_ref, final_ref, *, chunks: int, scale: float, reverse: bool,
):  # fmt: skip
    log_decay = log_decay_ref[...]

    def chunk(step, state):
        n = chunks - 1 - step if reverse else step
        states_ref[n] = state.astype(states_ref.dtype)
        rows = pl.ds(n * CHUNK, CHUNK)
        first, last, total = first_ref[n], last_ref[n], total_ref[n]
        counts = counts_ref[rows]
        own = docs_ref[rows] == (first if reverse else last)
        decay = jnp.exp(log_decay * (counts if reverse else total - counts).astype(jnp.float32)) * scale
        x = rows_where(own, x_ref[rows, :].astype(jnp.float32) * decay[:, None]).astype(x_ref.dtype)
        update = dot_rows(x, rows_where(own, y_ref[rows, :]))
        return jnp.where(first == last, jnp.exp(log_decay * total.astype(jnp.float32)) * state, 0.0) + update

    final_ref[...] = lax.fori_loop(0, chunks, chunk, initial_ref[...])


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b with float32 sums."""
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def dot_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """a^T b with float32 sums."""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def dot_columns(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b^T with float32 sums."""
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
