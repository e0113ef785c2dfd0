"""Grouped products on a TPU; a step multiplies a tile of rows by a strip of one group's matrix."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul.plan import Plan
from pallas_kernels.tpu import LANES, VMEM_LIMIT, dot

STRIP_BYTES = 8 * 2**20  # of a matrix in VMEM, double-buffered; our choice: rows are read few times


def multiply_rows(
    x_PD: jax.Array, w_EDF: jax.Array, plan: Plan, tile: int, *, transposed: bool = False, interpret: bool = False
) -> jax.Array:
    """Each row of x [P, D] times its group's matrix, [P, F] in x's dtype; `transposed` matrices are [E, F, D]."""
    (rows, depth), width = x_PD.shape, w_EDF.shape[1 if transposed else 2]
    strip = strip_width(width, depth * w_EDF.dtype.itemsize)
    if transposed:
        matrix = pl.BlockSpec((1, strip, depth), lambda f, s, group, tile, _: (group[s], f, 0))
    else:
        matrix = pl.BlockSpec((1, depth, strip), lambda f, s, group, tile, _: (group[s], 0, f))
    return pl.pallas_call(
        functools.partial(_kernel, size=tile, transposed=transposed),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(width // strip, plan.count),
            in_specs=[pl.BlockSpec((tile, depth), lambda f, s, group, tile, _: (tile[s], 0)), matrix],
            out_specs=pl.BlockSpec((tile, strip), lambda f, s, group, tile, _: (tile[s], f)),
        ),
        out_shape=jax.ShapeDtypeStruct((rows, width), x_PD.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=product_cost(rows, depth, width, x_PD, w_EDF),
        interpret=interpret,
        name="grouped_rows",
    )(plan.group, plan.tile, plan.bounds, x_PD, w_EDF)


def _kernel(group_ref, tile_ref, bounds_ref, x_ref, w_ref, out_ref, *, size: int, transposed: bool):
    step = pl.program_id(1)
    group, first = group_ref[step], tile_ref[step] * size
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    product = dot(x_ref[...], w_ref[0], contract)
    row = first + lax.broadcasted_iota(jnp.int32, product.shape, 0)
    own = (row >= bounds_ref[group]) & (row < bounds_ref[group + 1])
    # The other rows of the tile belong to groups of the steps before and after.
    out_ref[...] = jnp.where(own, product, out_ref[...].astype(jnp.float32)).astype(out_ref.dtype)


def product_cost(rows: int, depth: int, width: int, *others: jax.Array) -> pl.CostEstimate:
    """The cost of a product of all rows that writes `width` columns and moves each array of `others` once."""
    moved = sum(x.size * x.dtype.itemsize for x in others) + rows * width * others[0].dtype.itemsize
    return pl.CostEstimate(flops=2 * rows * depth * width, bytes_accessed=moved, transcendentals=0)


def strip_width(width: int, column_bytes: int, limit: int = STRIP_BYTES) -> int:
    """Columns of a strip: the largest divisor of the width in whole lanes within `limit` bytes.

    At most half of the width, so that two cores can share it.
    """
    fits = [n for n in range(LANES, max(width // 2, LANES) + 1, LANES) if width % n == 0]
    return max([n for n in fits if n * column_bytes <= limit] or fits[:1])
