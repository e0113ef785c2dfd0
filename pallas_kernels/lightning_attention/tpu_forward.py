"""Lightning attention on a TPU, forward: one pass over the tokens with the states in VMEM (docs/architecture.md §5)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lightning_attention import tpu_blocks as tpu
from pallas_kernels.lightning_attention.tpu_blocks import CHUNK, CHUNKS, STEP, Rows, Size, Tables, dot, dot_transposed


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    initial_state: jax.Array | None,
    rows: Rows | None,
    *,
    num_heads: int,
    heads: int,
    save: bool,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(out [B, T, H·V], final_state [B, H, K, V] float32, the states before every STEP tokens [B, N, H, K, V] or None).

    q, k [B, T, H·K], v [B, T, H·V]; `initial_state` and `rows` (from `rows_of`) may be None. A grid step covers `heads`
    heads; `save` asks for the states.
    """
    batch, length, _ = q.shape
    size = Size(heads, q.shape[2] // num_heads, v.shape[2] // num_heads)
    steps = pl.cdiv(length, STEP)

    def row(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, STEP, heads * width), lambda b, h, t: (b, t, h))

    state = (heads, size.key_dim, size.value_dim)
    state_spec = pl.BlockSpec((1, *state), lambda b, h, t: (b, h, 0, 0))
    shape = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(q).manual_axis_type)
    all_states = (num_heads, size.key_dim, size.value_dim)
    return pl.pallas_call(
        functools.partial(forward_step, size=size, length=length),
        grid=(batch, num_heads // heads, steps),
        in_specs=(
            pl.BlockSpec(memory_space=pltpu.SMEM),
            None if rows is None else tpu.rows_spec(rows, lambda t: t),
            None if initial_state is None else state_spec,
            row(size.key_dim),
            row(size.key_dim),
            row(size.value_dim),
        ),
        out_specs=(
            row(size.value_dim),
            state_spec,
            pl.BlockSpec((1, 1, *state), lambda b, h, t: (b, t, h, 0, 0)) if save else None,
        ),
        out_shape=(
            shape(v.shape, v.dtype),
            shape((batch, *all_states), jnp.float32),
            shape((batch, steps, *all_states), v.dtype) if save else None,
        ),
        scratch_shapes=(
            pltpu.VMEM(state, jnp.float32),
            tpu.tables_scratch(size, back=False, runs=rows is not None),
        ),
        compiler_params=tpu.PARAMS,
        interpret=interpret,
        name="lightning_forward",
    )(log_decay, None if rows is None else rows._replace(length=None), initial_state, q, k, v)


def forward_step(
    log_decay_ref: Any,
    row_refs: Any,
    initial_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    final_ref: Any,
    states_ref: Any,
    state_ref: Any,
    tables: Tables,
    *,
    size: Size,
    length: int,
) -> None:
    """A grid step of `forward`: STEP tokens of some heads. The layer's kernel runs it inside its own step."""
    last = pl.num_programs(2) - 1
    step, log_decays = pl.program_id(2), tpu.block_log_decays(log_decay_ref, size)

    @pl.when(step == 0)
    def _():
        state_ref[...] = jnp.zeros_like(state_ref) if initial_ref is None else initial_ref[0]
        tpu.fill_tables(tables, log_decays, size)

    if states_ref is not None:
        states_ref[0, 0] = state_ref[...].astype(states_ref.dtype)
    for chunk in range(CHUNKS):
        rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        attend = functools.partial(
            _run, rows, log_decays, q_ref, k_ref, v_ref, out_ref, state_ref, tables, size
        )  # fmt: skip
        if row_refs is None:
            attend(None)
        else:
            out_ref[0, rows] = jnp.zeros_like(out_ref[0, rows])
            tpu.for_each_run(row_refs._replace(length=length), step, chunk, attend)

    @pl.when(step == last)
    def _():
        final_ref[0] = state_ref[...]


def _run(rows, log_decays, q_ref, k_ref, v_ref, out_ref, state_ref, tables, size: Size, run):
    """One chunk, or a run of it, for all heads of the block.

    Independent matmuls of all heads are issued first: the order decides how well the matrix units are used.
    """
    heads = range(size.heads)
    q = [tpu.cut(q_ref[0, rows, size.keys(h)], run) for h in heads]
    k = [tpu.cut(k_ref[0, rows, size.keys(h)], run) for h in heads]
    v = [tpu.cut(v_ref[0, rows, size.values(h)], run) for h in heads]
    decays = [tpu.decays_of(h, run, tables, log_decays, size) for h in heads]
    scores = [dot(q[h], k[h], over=(1, 1)) for h in heads]
    updates = [dot_transposed(k[h].astype(jnp.float32) * decays[h].write[:, : size.key_dim], v[h]) for h in heads]
    for h in heads:
        state = state_ref[h] if run is None else jnp.where(run.fresh, 0, state_ref[h])
        score = (scores[h] * tables.within[h]).astype(v[h].dtype)
        read = decays[h].read[:, : size.value_dim]
        out = dot(score, v[h]) + read * dot(q[h], state.astype(v[h].dtype))
        tpu.store(out_ref, size.values(h), rows, out, run)
        state_ref[h] = state * decays[h].carry + updates[h]
