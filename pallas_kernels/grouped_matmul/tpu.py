"""Grouped matmuls on TPUs: product, outer product, and the shapes that suit them."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.plan import TILES, plan_steps, row_tile
from pallas_kernels.grouped_matmul.tpu_columns import add_columns
from pallas_kernels.grouped_matmul.tpu_rows import multiply_rows
from pallas_kernels.tpu import LANES

MAX_DEPTH = 16384  # depth of a product in one step: two strips of 128 columns and two tiles of rows fit in VMEM


def grouped_matmul_tpu(
    x_PD: jax.Array, w_EDF: jax.Array, loads_E: jax.Array, *, transposed: bool = False, interpret: bool = False
) -> jax.Array:
    """The first loads[0] rows times w[0], the next loads[1] times w[1], …: [P, F] in x's dtype.

    x [P, D] and w [E, D, F] ([E, F, D] if `transposed`) are both bfloat16 or both float32 and have shapes that
    `suits_tpu` accepts; sums are float32. loads [E] int32 sum to at most P; rows after the last group are undefined. A
    group without rows costs nothing; one with rows costs at most one tile more than its rows.
    """
    tile = row_tile(len(x_PD), len(loads_E), x_PD.dtype.itemsize * x_PD.shape[1])
    plan = plan_steps(loads_E, len(x_PD), tile)
    return multiply_rows(x_PD, w_EDF, plan, tile, transposed=transposed, interpret=interpret)


def add_grouped_outer_tpu(
    total_EDF: jax.Array, x_PD: jax.Array, y_PF: jax.Array, loads_E: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """total + x^T y over the rows of each group, [E, D, F]; the total is updated in place, sums are float32.

    x [P, D], y [P, F] and the total have one dtype; loads as in `grouped_matmul_tpu`. Rows after the last group do not
    count, and a group without rows costs nothing.
    """
    tile = row_tile(len(x_PD), len(loads_E), x_PD.dtype.itemsize * max(x_PD.shape[1], y_PF.shape[1]))
    plan = plan_steps(loads_E, len(x_PD), tile)
    return add_columns(total_EDF, x_PD, y_PF, plan, tile, interpret=interpret)


def suits_tpu(dtype: DTypeLike, rows: int, depth: int, width: int) -> bool:
    """Whether these kernels are the faster choice on a TPU: whole lanes, at least one tile of rows, depths that fit."""
    whole = not (depth % LANES or width % LANES) and max(depth, width) <= MAX_DEPTH
    return dtype in (jnp.bfloat16, jnp.float32) and rows >= TILES[-1] and whole
