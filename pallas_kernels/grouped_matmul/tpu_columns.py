"""Grouped outer products on a TPU: x^T y over the rows of each group."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul.plan import Plan
from pallas_kernels.grouped_matmul.tpu_rows import product_cost, strip_width
from pallas_kernels.tpu import VMEM_LIMIT, dot

SUM_BYTES = 8 * 2**20  # of a float32 sum in VMEM; two old and two new totals take as much each. Our choice
MAX_STRIP_WIDTH = 2048  # columns of a strip of y


def add_columns(
    total_EDF: jax.Array, x_PD: jax.Array, y_PF: jax.Array, plan: Plan, tile: int, *, interpret: bool = False
) -> jax.Array:
    """total + x^T y over the rows of each group, [E, D, F], in place; sums are float32."""
    depth, width = x_PD.shape[1], y_PF.shape[1]
    columns = width if width <= MAX_STRIP_WIDTH else strip_width(width, 1, MAX_STRIP_WIDTH)
    rows = strip_width(depth, 2 * total_EDF.dtype.itemsize * columns, SUM_BYTES)
    total = pl.BlockSpec((1, rows, columns), lambda d, f, s, group, tile, _: (group[s], d, f))
    return pl.pallas_call(
        functools.partial(_kernel, size=tile),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(depth // rows, width // columns, plan.count),
            in_specs=[
                pl.BlockSpec((tile, rows), lambda d, f, s, group, tile, _: (tile[s], d)),
                pl.BlockSpec((tile, columns), lambda d, f, s, group, tile, _: (tile[s], f)),
                total,
            ],
            out_specs=total,
            scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(total_EDF.shape, total_EDF.dtype),
        input_output_aliases={5: 0},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=product_cost(len(x_PD), depth, width, x_PD, total_EDF, total_EDF),
        interpret=interpret,
        name="grouped_columns",
    )(plan.group, plan.tile, plan.bounds, x_PD, y_PF, total_EDF)


def _kernel(group_ref, tile_ref, bounds_ref, x_ref, y_ref, total_ref, out_ref, sum_ref, *, size: int):
    step, last = pl.program_id(2), pl.num_programs(2) - 1
    group, first = group_ref[step], tile_ref[step] * size
    start, end = bounds_ref[group] - first, bounds_ref[group + 1] - first

    @pl.when((step == 0) | (group_ref[jnp.maximum(step - 1, 0)] != group))
    def _():
        sum_ref[...] = total_ref[0].astype(jnp.float32)

    # Both operands: rows after the last group may hold NaN.
    x, y = _cut(x_ref[...], start, end), _cut(y_ref[...], start, end)
    sum_ref[...] += dot(x, y, (((0,), (0,)), ((), ())))

    @pl.when((step == last) | (group_ref[jnp.minimum(step + 1, last)] != group))
    def _():
        out_ref[0] = sum_ref[...].astype(out_ref.dtype)


def _cut(x, start, end):
    """x with zeros outside of rows start … end, NaN included; two bfloat16 rows share an int32."""
    bits = pltpu.bitcast(x, jnp.int32)
    packed = x.shape[0] // bits.shape[0]
    row = lax.broadcasted_iota(jnp.int32, bits.shape, 0) * packed

    def inside(part: int):
        return (row + part >= start) & (row + part < end)

    mask = jnp.where(inside(0), -1 if packed == 1 else 0xFFFF, 0)
    if packed == 2:
        mask = mask | jnp.where(inside(1), -0x10000, 0)
    return pltpu.bitcast(bits & mask, x.dtype)
