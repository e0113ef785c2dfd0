"""Softmax attention on a TPU, backward: one pass with keys in the outer and queries in the inner loop.

P = exp(scale K Q^T - logsumexp), shift = Σ dO O of a query; all matrices are [keys, queries]:

    dV = P dO       dS = scale P (V dO^T - shift)       dK = dS Q       dQ = dS^T K
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.softmax_attention.tpu_forward import (
    LOG2E,
    NN,
    NT,
    PARAMS,
    TN,
    Size,
    cost,
    scalars,
    visible,
    when_visible,
)
from pallas_kernels.softmax_attention.window import Window, flat, query_blocks, visible_blocks
from pallas_kernels.tpu import dot


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    d_out: jax.Array,
    logsumexp: jax.Array,
    shift: jax.Array,
    window: Window,
    scale: float,
    size: Size,
    pairs: int,
    kv_dtypes: tuple[DTypeLike, DTypeLike],
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq [B, H, T, K] float32, dk [B, H, S, K] and dv [B, H, S, V] in `kv_dtypes`), for each query head.

    logsumexp and shift [B, H, T]. dq of all T queries stays on chip.
    """
    (batch, heads, length, key_dim), (groups, keys, value_dim) = q.shape, v.shape[1:]
    count, share = length // size.queries, heads // groups
    blocks = visible_blocks(window, size.queries, size.keys, keys)
    readers = query_blocks(blocks, keys // size.keys)
    out_shape = [
        jax.ShapeDtypeStruct((batch, heads, key_dim, length), jnp.float32),
        jax.ShapeDtypeStruct((batch, heads, keys, key_dim), kv_dtypes[0]),
        jax.ShapeDtypeStruct((batch, heads, keys, value_dim), kv_dtypes[1]),
    ]
    times = pairs / (length * size.keys)  # reads of queries and their gradients

    def place(b, j, i, readers_ref):
        start, stop = scalars(readers_ref, 2, b, j, batch)
        return jnp.clip(i, start, jnp.clip(stop - 1, 0, count - 1))

    def query(width: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (1, 1, size.queries, width), lambda b, h, j, i, _, readers: (b, h, place(b, j, i, readers), 0)
        )

    number = pl.BlockSpec((1, 1, 1, size.queries), lambda b, h, j, i, _, readers: (b, h, 0, place(b, j, i, readers)))

    def key(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, size.keys, width), lambda b, h, j, i, *_: (b, h // share, j, 0))

    def d_key(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, size.keys, width), lambda b, h, j, i, *_: (b, h, j, 0))

    windows = pl.BlockSpec((1, 2, size.queries), lambda b, h, j, i, _, readers: (b, 0, place(b, j, i, readers)))
    d_q, d_k, d_v = pl.pallas_call(
        functools.partial(_kernel, scale=scale, size=size, batch=batch),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads, keys // size.keys, count),
            in_specs=[windows, query(key_dim), key(key_dim), key(value_dim), query(value_dim), number, number],
            out_specs=[
                pl.BlockSpec((1, 1, key_dim, length), lambda b, h, j, i, *_: (b, h, 0, 0)),
                d_key(key_dim),
                d_key(value_dim),
            ],
            scratch_shapes=[
                pltpu.VMEM((size.keys, key_dim), jnp.float32),
                pltpu.VMEM((size.keys, value_dim), jnp.float32),
            ],
        ),
        out_shape=out_shape,
        compiler_params=PARAMS,
        cost_estimate=cost(
            2 * batch * heads * pairs * (3 * key_dim + 2 * value_dim), batch * heads * pairs,
            (k, share), (v, share), (q, times), (d_out, times), *((x, 1) for x in out_shape),
        ),
        interpret=interpret,
        name="softmax_backward",
    )(
        flat(*blocks), flat(*readers), jnp.stack(window, axis=1), q, k, v, d_out,
        logsumexp[:, :, None], shift[:, :, None],
    )  # fmt: skip
    return jnp.swapaxes(d_q, 2, 3), d_k, d_v


def _kernel(
    blocks_ref, readers_ref, window_ref, q_ref, k_ref, v_ref, d_out_ref, logsumexp_ref, shift_ref,
    d_q_ref, d_k_ref, d_v_ref, d_k_sum, d_v_sum, *, scale: float, size: Size, batch: int,
):  # fmt: skip
    del readers_ref
    keys, queries = pl.program_id(2), pl.program_id(3)

    @pl.when((keys == 0) & (queries == 0))
    def _():
        d_q_ref[...] = jnp.zeros_like(d_q_ref)

    @pl.when(queries == 0)
    def _():
        d_k_sum[...] = jnp.zeros_like(d_k_sum)
        d_v_sum[...] = jnp.zeros_like(d_v_sum)

    @when_visible(scalars(blocks_ref, 4, pl.program_id(0), queries, batch), keys)
    def _(whole: bool):
        q, k, v, d_out = q_ref[0, 0], k_ref[0, 0], v_ref[0, 0], d_out_ref[0, 0]
        weight = jnp.exp2(dot(k, q, NT) * (scale * LOG2E) - logsumexp_ref[0, 0] * LOG2E)
        if not whole:
            weight = jnp.where(visible(window_ref, keys * size.keys, weight.shape), weight, 0)
        d_v_sum[...] += dot(weight.astype(d_out.dtype), d_out, NN)
        d_score = (weight * (dot(v, d_out, NT) - shift_ref[0, 0])).astype(q.dtype)
        d_k_sum[...] += dot(d_score, q, NN)
        d_q_ref[0, 0, :, pl.ds(queries * size.queries, size.queries)] += dot(k, d_score, TN)

    @pl.when(queries == pl.num_programs(3) - 1)
    def _():
        d_k_ref[0, 0] = (d_k_sum[...] * scale).astype(d_k_ref.dtype)
        d_v_ref[0, 0] = d_v_sum[...].astype(d_v_ref.dtype)

    @pl.when((keys == pl.num_programs(2) - 1) & (queries == pl.num_programs(3) - 1))
    def _():
        d_q_ref[...] *= scale
