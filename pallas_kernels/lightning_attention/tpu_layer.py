"""A whole Lightning layer between its projections on a TPU: one forward and one backward kernel (docs/architecture.md
§5, steps 2 to 5). The attention of `tpu_forward` and `tpu_backward` runs on blocks that the same step prepares in VMEM.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import ArrayLike, DTypeLike

from pallas_kernels.lightning_attention import tpu_blocks as tpu
from pallas_kernels.lightning_attention.tpu import head_block, suits_tpu
from pallas_kernels.lightning_attention.tpu_backward import backward_step
from pallas_kernels.lightning_attention.tpu_blocks import CHUNK, CHUNKS, STEP, Size
from pallas_kernels.lightning_attention.tpu_forward import forward_step
from pallas_kernels.lightning_attention.tpu_rows import (
    EIGHT,
    Rotation,
    gated,
    gated_gradients,
    inverse_rms,
    normed_and_rotated,
    normed_and_rotated_gradients,
)  # fmt: skip


class Norms(NamedTuple):
    """Norm weights, float32 in the kernels."""

    q: jax.Array  # [1, K]
    k: jax.Array  # [1, K]
    out: jax.Array  # [1, H·V]


class Static(NamedTuple):
    """The static options of the layer."""

    num_heads: int
    num_groups: int  # groups of neighbouring heads in the output norm
    half: int  # half of the rotated dims
    eps: float
    interpret: bool


def suits_layer(
    dtype: DTypeLike, batch: int, length: int, num_heads: int, num_groups: int, key_dim: int, value_dim: int
) -> bool:
    """Whether the layer's kernel is the faster choice: whole tiles, tokens that fill a chunk, whole norm groups."""
    q = jax.ShapeDtypeStruct((batch, length, num_heads, key_dim), dtype)
    itemsize = q.dtype.itemsize
    return suits_tpu(q, value_dim) and bool(layer_heads(batch, num_heads, num_groups, key_dim, value_dim, itemsize))


def layer_heads(batch: int, num_heads: int, num_groups: int, key_dim: int, value_dim: int, itemsize: int) -> int | None:
    """Heads of a grid step, as for attention; None if they are no whole norm groups and the kernel cannot run."""
    heads = head_block(batch, num_heads, key_dim, value_dim, itemsize)
    return heads if heads % (num_heads // num_groups) == 0 else None


def lightning_layer_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gate: jax.Array,
    norms: Norms,
    rotation: tuple[jax.Array, jax.Array],
    log_decay: jax.Array,
    initial_state: jax.Array | None,
    segment_ids: ArrayLike | None,
    *,
    num_heads: int,
    num_groups: int,
    half: int,
    eps: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """A Lightning layer from its projections: (input of the output projection [B, T, H·V], final_state [B, H, K, V]).

    q, k [B, T, H·K], v and gate [B, T, H·V] are projections. Norm weights: q, k [K], out [H, V]. rotation is (cos, sin)
    of `rotation_lanes`, [B or 1, T, K]; it swaps halves of width `half`. The rest is as in `lightning_attention`.
    """
    static = Static(num_heads, num_groups, half, eps, interpret)
    norms = Norms(*(jnp.reshape(weight, (1, -1)).astype(jnp.float32) for weight in norms))
    initial_state = None if initial_state is None else initial_state.astype(jnp.float32)
    segment_ids = None if segment_ids is None else jnp.asarray(segment_ids, jnp.int32)
    log_decay = log_decay.astype(jnp.float32)
    return _layer(static, q, k, v, gate, norms, *rotation, log_decay, initial_state, segment_ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer(static, *arguments):
    return _forward(static, *arguments, save=False)[:2]


def _layer_forward(static, *arguments):
    arguments = jax.tree.map(lambda x: x.value, arguments, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    out, final_state, states, attended = _forward(static, *arguments, save=True)
    return (out, final_state), (arguments, states, attended)


def _layer_backward(static, kept, cotangents):
    arguments, states, attended = kept
    d_out, d_final = cotangents
    if isinstance(d_out, SymbolicZero):
        d_out = jnp.zeros(d_out.shape, d_out.dtype)
    d_final = None if isinstance(d_final, SymbolicZero) else d_final
    *gradients, d_norms, d_initial = _backward(static, *arguments, states, attended, d_out, d_final)
    d_norms = Norms(*(jnp.sum(parts.reshape(-1, parts.shape[-1]), axis=0)[None] for parts in d_norms))
    return *gradients, d_norms, None, None, None, d_initial, None


_layer.defvjp(_layer_forward, _layer_backward, symbolic_zeros=True)


class Specs(NamedTuple):
    """BlockSpecs of a grid step."""

    keys: pl.BlockSpec
    values: pl.BlockSpec
    rotation: pl.BlockSpec
    norms: Norms
    state: pl.BlockSpec
    states: pl.BlockSpec


def _specs(size: Size, shared_rope: bool, step_of) -> Specs:
    heads, key_dim, value_dim = size

    def row(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, STEP, heads * width), lambda b, h, t: (b, step_of(t), h))

    head = pl.BlockSpec((1, key_dim), lambda b, h, t: (0, 0))
    return Specs(
        keys=row(key_dim),
        values=row(value_dim),
        rotation=pl.BlockSpec((1, STEP, key_dim), lambda b, h, t: (0 if shared_rope else b, step_of(t), 0)),
        norms=Norms(head, head, pl.BlockSpec((1, heads * value_dim), lambda b, h, t: (0, h))),
        state=pl.BlockSpec((1, *size), lambda b, h, t: (b, h, 0, 0)),
        states=pl.BlockSpec((1, 1, *size), lambda b, h, t: (b, step_of(t), h, 0, 0)),
    )


def _size(static: Static, q, v) -> Size:
    key_dim, value_dim = q.shape[2] // static.num_heads, v.shape[2] // static.num_heads
    heads = layer_heads(q.shape[0], static.num_heads, static.num_groups, key_dim, value_dim, q.dtype.itemsize)
    return Size(heads, key_dim, value_dim)


# ---------------------------------------------------------------- forward


def _forward(static, q, k, v, gate, norms, cos, sin, log_decay, initial_state, segment_ids, *, save: bool):
    """(out, final_state, states or None, attention output [B, T, H·V] or None)."""
    batch, length, _ = q.shape
    size = _size(static, q, v)
    specs = _specs(size, cos.shape[0] == 1, lambda t: t)
    rows = tpu.rows_of(segment_ids, length, initial_state is not None)
    steps = pl.cdiv(length, STEP)
    shape = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(q).manual_axis_type)
    all_states = (static.num_heads, size.key_dim, size.value_dim)

    def block(width: int):
        return pltpu.VMEM((1, STEP, size.heads * width), q.dtype)

    return pl.pallas_call(
        functools.partial(_forward_kernel, static=static, size=size, length=length),
        grid=(batch, static.num_heads // size.heads, steps),
        in_specs=(
            pl.BlockSpec(memory_space=pltpu.SMEM),
            None if rows is None else tpu.rows_spec(rows, lambda t: t),
            None if initial_state is None else specs.state,
            specs.norms, (specs.rotation, specs.rotation), specs.keys, specs.keys, specs.values, specs.values,
        ),
        out_specs=(specs.values, specs.state, specs.states if save else None, specs.values if save else None),
        out_shape=(
            shape(v.shape, v.dtype),
            shape((batch, *all_states), jnp.float32),
            shape((batch, steps, *all_states), v.dtype) if save else None,
            shape(v.shape, v.dtype) if save else None,
        ),
        scratch_shapes=(
            block(size.key_dim),
            block(size.key_dim),
            None if save else block(size.value_dim),
            pltpu.VMEM(tuple(size), jnp.float32),
            tpu.tables_scratch(size, back=False, runs=rows is not None),
        ),
        compiler_params=tpu.PARAMS,
        interpret=static.interpret,
        name="lightning_layer_forward",
    )(
        log_decay, None if rows is None else rows._replace(length=None), initial_state, norms, (cos, sin), q, k, v, gate
    )  # fmt: skip


def _forward_kernel(
    log_decay_ref, row_refs, initial_ref, norms, rotation_refs, q_ref, k_ref, v_ref, gate_ref,
    out_ref, final_ref, states_ref, attended_ref, query_ref, key_ref, scratch_ref, state_ref, tables,
    *, static: Static, size: Size, length: int,
):  # fmt: skip
    _prepare(norms, rotation_refs, (q_ref, k_ref), (query_ref, key_ref), _load, static, size)
    attended_ref = scratch_ref if attended_ref is None else attended_ref
    forward_step(
        log_decay_ref, row_refs, initial_ref, query_ref, key_ref, v_ref, attended_ref, final_ref, states_ref,
        state_ref, tables, size=size, length=length,
    )  # fmt: skip
    for rows in _chunks():
        groups = [[attended_ref[0, rows, c] for c in group] for group in _groups(static, size)]
        inverses = inverse_rms(groups, static.eps)
        for columns, group, inverse in zip(_groups(static, size), groups, inverses, strict=True):
            weights, gates = ([ref[..., c] for c in columns] for ref in (norms.out, gate_ref.at[0, rows]))
            for place, out in zip(columns, gated(group, inverse, weights, gates), strict=True):
                out_ref[0, rows, place] = out.astype(out_ref.dtype)


def _prepare(norms, rotation_refs, inputs, outputs, load, static: Static, size: Size):
    """Norms and rotates queries and keys in VMEM; returns their inverse rms by chunk, queries first."""
    inverses = []
    for rows in _chunks():
        rotation = Rotation(*(load(ref, rows, slice(None)) for ref in rotation_refs), static.half)
        places = [(i, size.keys(head)) for i in (0, 1) for head in range(size.heads)]
        inverses.append(inverse_rms([load(inputs[i], rows, columns) for i, columns in places], static.eps))
        for (i, columns), inverse in zip(places, inverses[-1], strict=True):
            x = load(inputs[i], rows, columns)
            outputs[i][0, rows, columns] = normed_and_rotated(x, inverse, norms[i][...], rotation).astype(x.dtype)
    return inverses


def _load(ref, rows: slice, columns: slice):
    return ref[0, rows, columns]


def _load_live(step, length: int, ref, rows: slice, columns: slice):
    """The block with zeros after the last token of a row, since sums over rows would include those values."""
    live = jnp.clip(length - step * STEP - rows.start, 0, CHUNK)
    return tpu.cut(ref[0, rows, columns], tpu.Run(jnp.int32(0), live, None))


def _chunks() -> list[slice]:
    return [slice(chunk * CHUNK, (chunk + 1) * CHUNK) for chunk in range(CHUNKS)]


def _groups(static: Static, size: Size) -> list[list[slice]]:
    """The columns of each head of each norm group."""
    many = static.num_heads // static.num_groups
    return [[size.values(first + head) for head in range(many)] for first in range(0, size.heads, many)]


# ---------------------------------------------------------------- backward


def _backward(
    static, q, k, v, gate, norms, cos, sin, log_decay, initial_state, segment_ids, states, attended, d_out, d_final
):  # fmt: skip
    """(dq, dk, dv, d_gate, parts of the norms' gradients, gradient of the initial state or None)."""
    batch, length, _ = q.shape
    size, initial = _size(static, q, v), initial_state is not None
    steps, blocks = states.shape[1], static.num_heads // size.heads

    def back(t):
        return steps - 1 - t

    specs = _specs(size, cos.shape[0] == 1, back)
    rows = tpu.rows_of(segment_ids, length, initial)
    shape = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(q).manual_axis_type)
    parts = pl.BlockSpec((1, 1, EIGHT, size.key_dim), lambda b, h, t: (b, h, 0, 0))
    part_shape = shape((batch, blocks, EIGHT, size.key_dim), jnp.float32)

    def block(width: int):
        return pltpu.VMEM((1, STEP, size.heads * width), q.dtype)

    keys, values = specs.keys, specs.values
    return pl.pallas_call(
        functools.partial(_backward_kernel, static=static, size=size, length=length),
        grid=(batch, blocks, steps),
        in_specs=(
            pl.BlockSpec(memory_space=pltpu.SMEM),
            None if rows is None else tpu.rows_spec(rows, back),
            specs.states,
            None if d_final is None else specs.state,
            specs.norms, (specs.rotation, specs.rotation), keys, keys, values, values, values, values,
        ),
        out_specs=(
            keys, keys, values, values,
            Norms(parts, parts, pl.BlockSpec((1, EIGHT, size.heads * size.value_dim), lambda b, h, t: (b, 0, h))),
            specs.state if initial else None,
        ),
        out_shape=(
            *(shape(x.shape, x.dtype) for x in (q, k, v, gate)),
            Norms(part_shape, part_shape, shape((batch, EIGHT, v.shape[2]), jnp.float32)),
            shape((batch, static.num_heads, *size[1:]), jnp.float32) if initial else None,
        ),
        scratch_shapes=(
            *(block(width) for width in (size.key_dim, size.key_dim, size.value_dim, size.key_dim, size.key_dim)),
            pltpu.VMEM(tuple(size), jnp.float32),
            [pltpu.VMEM(tuple(size), v.dtype) for _ in range(CHUNKS - 1)],
            tpu.tables_scratch(size, back=True, runs=rows is not None),
        ),
        compiler_params=tpu.PARAMS,
        interpret=static.interpret,
        name="lightning_layer_backward",
    )(
        log_decay, None if rows is None else rows._replace(length=None), states, d_final, norms, (cos, sin),
        q, k, v, gate, attended, d_out,
    )  # fmt: skip


def _backward_kernel(
    log_decay_ref, row_refs, states_ref, d_final_ref, norms, rotation_refs, q_ref, k_ref, v_ref, gate_ref, attended_ref,
    d_out_ref, dq_ref, dk_ref, dv_ref, d_gate_ref, d_norms, d_initial_ref, query_ref, key_ref, d_attended_ref,
    d_query_ref, d_key_ref, d_state_ref, between_refs, tables, *, static: Static, size: Size, length: int,
):  # fmt: skip
    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref in d_norms:
            ref[...] = jnp.zeros_like(ref)

    step = pl.num_programs(2) - 1 - pl.program_id(2)
    load = functools.partial(_load_live, step, length) if length % STEP else _load
    inverses = _prepare(norms, rotation_refs, (q_ref, k_ref), (query_ref, key_ref), load, static, size)
    for rows in _chunks():
        groups = [[load(attended_ref, rows, c) for c in group] for group in _groups(static, size)]
        for columns, group, inverse in zip(_groups(static, size), groups, inverse_rms(groups, static.eps), strict=True):
            weights = [norms.out[:, c] for c in columns]
            gates, d_out = ([load(ref, rows, c) for c in columns] for ref in (gate_ref, d_out_ref))
            found = gated_gradients(group, inverse, weights, gates, d_out)
            for place, d_attended, d_gate, d_weight in zip(columns, *found, strict=True):
                d_attended_ref[0, rows, place] = d_attended.astype(d_attended_ref.dtype)
                d_gate_ref[0, rows, place] = d_gate.astype(d_gate_ref.dtype)
                d_norms.out[0, :, place] += d_weight
    backward_step(
        log_decay_ref, row_refs, states_ref, d_final_ref, query_ref, key_ref, v_ref, d_attended_ref,
        d_query_ref, d_key_ref, dv_ref, d_initial_ref, d_state_ref, between_refs, tables, size=size, length=length,
    )  # fmt: skip
    for rows, chunk_inverses in zip(_chunks(), inverses, strict=True):
        rotation = Rotation(*(load(ref, rows, slice(None)) for ref in rotation_refs), static.half)
        for number, inverse in enumerate(chunk_inverses):
            i, head = divmod(number, size.heads)
            columns = size.keys(head)
            x, d_rotated = load((q_ref, k_ref)[i], rows, columns), (d_query_ref, d_key_ref)[i][0, rows, columns]
            dx, d_weight = normed_and_rotated_gradients(x, inverse, norms[i][...], rotation, d_rotated)
            (dq_ref, dk_ref)[i][0, rows, columns] = dx.astype(x.dtype)
            d_norms[i][0, 0] += d_weight
