"""Grouped matmuls on TPUs: the product, the outer product, and for which shapes they are the right choice."""

import jax.numpy as jnp

from pallas_kernels.grouped_matmul.plan import TILES, plan_steps, row_tile
from pallas_kernels.grouped_matmul.tpu_columns import add_columns
from pallas_kernels.grouped_matmul.tpu_rows import multiply_rows
from pallas_kernels.tpu import LANES

DEEPEST = 16384  # of a product in one step: two strips of 128 columns and two tiles of rows then fit in VMEM


def grouped_matmul_tpu(x_PD, w_EDF, loads_E, *, transposed: bool = False, interpret: bool = False):
    """[P, F] in x's dtype: the first loads[0] rows times w[0], the next loads[1] times w[1], …

    x and w are both bfloat16 or both float32, sums float32; `suits_tpu` says which shapes. `transposed` multiplies by
    the transposes: w is then [E, F, D]. loads [E] int32 sum to P at most; what stands behind the last group is
    undefined. A group without rows costs nothing, one with rows at most a tile of rows beside its own.
    """
    tile = row_tile(len(x_PD), len(loads_E), x_PD.dtype.itemsize * x_PD.shape[1])
    plan = plan_steps(loads_E, len(x_PD), tile)
    return multiply_rows(x_PD, w_EDF, plan, tile, transposed=transposed, interpret=interpret)


def add_grouped_outer_tpu(total_EDF, x_PD, y_PF, loads_E, *, interpret: bool = False):
    """[E, D, F]: the total, which is updated in place, and each group's sum of x^T y over its rows, added in float32.

    All of one dtype; rows and loads as in `grouped_matmul_tpu`. What stands behind the last group does not count, and
    a group without rows costs nothing.
    """
    tile = row_tile(len(x_PD), len(loads_E), x_PD.dtype.itemsize * max(x_PD.shape[1], y_PF.shape[1]))
    plan = plan_steps(loads_E, len(x_PD), tile)
    return add_columns(total_EDF, x_PD, y_PF, plan, tile, interpret=interpret)


def suits_tpu(dtype, rows: int, depth: int, width: int) -> bool:
    """Whether these kernels are the faster choice on a TPU: whole lanes, at least a tile of rows, depths that fit."""
    whole = not (depth % LANES or width % LANES) and max(depth, width) <= DEEPEST
    return dtype in (jnp.bfloat16, jnp.float32) and rows >= TILES[-1] and whole
