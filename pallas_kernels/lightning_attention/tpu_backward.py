"""Lightning attention on a TPU, backward: one pass in reverse order, from the states that forward stored.

P = (dO V^T) within and A = (Q K^T) within. r is the decay of the incoming state S at a token (with K^-0.5), w the decay
of a token in the outgoing state, c the decay of the incoming state in the outgoing one:

    dQ = P K + r dO S^T       dK = P^T Q + w V dS^T       dV = A^T dO + w K dS       dS_in = c dS + (r Q)^T dO
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lightning_attention import tpu_blocks as tpu
from pallas_kernels.lightning_attention.tpu_blocks import CHUNK, CHUNKS, STEP, Rows, Size, Tables, dot, dot_transposed


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    d_out: jax.Array,
    states: jax.Array,
    d_final: jax.Array | None,
    log_decay: jax.Array,
    rows: Rows | None,
    *,
    heads: int,
    initial: bool,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """(dq, dk, dv, gradient of the initial state or None).

    `states` [B, N, H, K, V] come from `forward`; `d_final` is [B, H, K, V] float32 or None for zeros; the other
    arguments are those of `forward`. `initial` asks for the gradient of the initial state.
    """
    batch, steps, num_heads, key_dim, value_dim = states.shape
    size = Size(heads, key_dim, value_dim)

    def row(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, STEP, heads * width), lambda b, h, t: (b, steps - 1 - t, h))

    keys, values, state = row(key_dim), row(value_dim), (heads, key_dim, value_dim)
    state_spec = pl.BlockSpec((1, *state), lambda b, h, t: (b, h, 0, 0))
    if not interpret:  # otherwise the compiler copies some of them on chip while the forward pass still reads them
        in_hbm = functools.partial(pltpu.with_memory_space_constraint, memory_space=pltpu.HBM)
        q, k, v, d_out, states = map(in_hbm, (q, k, v, d_out, states))
    shape = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(q).manual_axis_type)
    return pl.pallas_call(
        functools.partial(backward_step, size=size, length=q.shape[1]),
        grid=(batch, num_heads // heads, steps),
        in_specs=(
            pl.BlockSpec(memory_space=pltpu.SMEM),
            None if rows is None else tpu.rows_spec(rows, lambda t: steps - 1 - t),
            pl.BlockSpec((1, 1, *state), lambda b, h, t: (b, steps - 1 - t, h, 0, 0)),
            None if d_final is None else state_spec,
            keys,
            keys,
            values,
            values,
        ),
        out_specs=(keys, keys, values, state_spec if initial else None),
        out_shape=(
            shape(q.shape, q.dtype),
            shape(k.shape, k.dtype),
            shape(v.shape, v.dtype),
            shape((batch, num_heads, key_dim, value_dim), jnp.float32) if initial else None,
        ),
        scratch_shapes=(
            pltpu.VMEM(state, jnp.float32),
            [pltpu.VMEM(state, v.dtype) for _ in range(CHUNKS - 1)],
            tpu.tables_scratch(size, back=True, runs=rows is not None),
        ),
        compiler_params=tpu.PARAMS,
        interpret=interpret,
        name="lightning_backward",
    )(log_decay, None if rows is None else rows._replace(length=None), states, d_final, q, k, v, d_out)


def backward_step(
    log_decay_ref: Any,
    row_refs: Any,
    states_ref: Any,
    d_final_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    d_out_ref: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    d_initial_ref: Any,
    d_state_ref: Any,
    between_refs: Any,
    tables: Tables,
    *,
    size: Size,
    length: int,
) -> None:
    """A grid step of `backward`: STEP tokens of some heads. The layer\'s kernel runs it inside its own step."""
    last = pl.num_programs(2) - 1
    step, log_decays = pl.program_id(2), tpu.block_log_decays(log_decay_ref, size)

    @pl.when(step == 0)
    def _():
        d_state_ref[...] = jnp.zeros_like(d_state_ref) if d_final_ref is None else d_final_ref[0]
        tpu.fill_tables(tables, log_decays, size)

    runs = (
        None if row_refs is None else functools.partial(tpu.for_each_run, row_refs._replace(length=length), last - step)
    )
    state_refs = [states_ref.at[0, 0], *between_refs]  # before each chunk

    def decays(head: int, run):
        return tpu.decays_of(head, run, tables, log_decays, size)

    for chunk in range(CHUNKS - 1):
        rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        before, after = state_refs[chunk : chunk + 2]
        if runs is None:
            _advance(rows, k_ref, v_ref, before, after, decays, size, None)
        else:
            after[...] = before[...]
            advance = functools.partial(_advance, rows, k_ref, v_ref, after, after, decays, size)
            runs(chunk, advance)
    for chunk in reversed(range(CHUNKS)):
        rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        gradients = functools.partial(
            _run, rows, (q_ref, k_ref, v_ref, d_out_ref), (dq_ref, dk_ref, dv_ref), state_refs[chunk], d_state_ref,
            tables, decays, size,
        )  # fmt: skip
        if runs is None:
            gradients(None)
        else:
            for ref in (dq_ref, dk_ref, dv_ref):
                ref[0, rows] = jnp.zeros_like(ref[0, rows])
            runs(chunk, gradients, reverse=True)

    if d_initial_ref is not None:

        @pl.when(step == last)
        def _():
            d_initial_ref[0] = d_state_ref[...]


def _advance(rows, k_ref, v_ref, before, after, decays, size: Size, run):
    """Advances the states over a chunk or a run of it."""
    for h in range(size.heads):
        k, v = (tpu.cut(x, run) for x in (k_ref[0, rows, size.keys(h)], v_ref[0, rows, size.values(h)]))
        decay = decays(h, run)
        update = dot_transposed(k.astype(jnp.float32) * decay.write[:, : size.key_dim], v)
        state = before[h].astype(jnp.float32)
        state = state if run is None else jnp.where(run.fresh, 0, state)
        after[h] = (state * decay.carry + update).astype(after.dtype)


def _run(rows, inputs, gradients, state_ref, d_state_ref, tables, decays, size: Size, run):
    """Gradients of one chunk, or of a run of it, for all heads; independent matmuls are issued first."""
    heads = range(size.heads)
    q_ref, k_ref, v_ref, d_out_ref = inputs
    dq_ref, dk_ref, dv_ref = gradients
    q, k = ([tpu.cut(ref[0, rows, size.keys(h)], run) for h in heads] for ref in (q_ref, k_ref))
    v, d_out = ([tpu.cut(ref[0, rows, size.values(h)], run) for h in heads] for ref in (v_ref, d_out_ref))
    d_scores = [dot(d_out[h], v[h], over=(1, 1)) for h in heads]
    scores_back = [dot(k[h], q[h], over=(1, 1)) for h in heads]
    for h in heads:
        dtype, decay = k[h].dtype, decays(h, run)
        read, write = decay.read[:, : size.key_dim], decay.write
        state = state_ref[h] if run is None else jnp.where(run.fresh, 0, state_ref[h])
        d_state = d_state_ref[h]
        d_next = d_state.astype(dtype)
        d_score = d_scores[h] * tables.within[h]
        score_back = (scores_back[h] * tables.back[h]).astype(dtype)
        dq = dot(d_score.astype(dtype), k[h]) + read * dot(d_out[h], state, over=(1, 1))
        dk = dot_transposed(d_score, q[h]) + write[:, : size.key_dim] * dot(v[h], d_next, over=(1, 1))
        dv = dot(score_back, d_out[h]) + write[:, : size.value_dim] * dot(k[h], d_next)
        d_state = d_state * decay.carry + dot_transposed(q[h].astype(jnp.float32) * read, d_out[h])
        tpu.store(dq_ref, size.keys(h), rows, dq, run)
        tpu.store(dk_ref, size.keys(h), rows, dk, run)
        tpu.store(dv_ref, size.values(h), rows, dv, run)
        d_state_ref[h] = d_state if run is None else jnp.where(run.fresh, 0, d_state)
