"""Grouped matmuls on TPUs: the product, its two gradients, and for which shapes they are the right choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.grouped_matmul.plan import TILES, plan_steps, row_tile
from pallas_kernels.grouped_matmul.tpu_rows import LANES, multiply_rows
from pallas_kernels.grouped_matmul.tpu_weights import multiply_columns

DEEPEST = 16384  # of a product in one step: two strips of 128 columns and two tiles of rows then fit in VMEM


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul_tpu(x_PD, w_EDF, loads_E, interpret: bool = False):
    """[P, F] in x's dtype: the first loads[0] rows times w[0], the next loads[1] times w[1], …

    x and w are both bfloat16 or both float32, sums float32; `suits_tpu` says which shapes. loads [E] int32 sum to P.
    A group without rows costs nothing, one with rows at most a tile of rows beside its own. Gradients reach x and w.
    """
    return rows_product(x_PD, w_EDF, loads_E, interpret=interpret)


def _forward(x_PD, w_EDF, loads_E, interpret):
    return rows_product(x_PD, w_EDF, loads_E, interpret=interpret), (x_PD, w_EDF, loads_E)


def _backward(interpret, residuals, grad_PF):
    x_PD, w_EDF, loads_E = residuals
    grad_x_PD = rows_product(grad_PF, w_EDF, loads_E, transposed=True, interpret=interpret)
    grad_w_EDF = weights_product(x_PD, grad_PF, loads_E, interpret=interpret)
    return grad_x_PD, grad_w_EDF, np.zeros(loads_E.shape, jax.dtypes.float0)


grouped_matmul_tpu.defvjp(_forward, _backward)


def rows_product(x_PD, w_EDF, loads_E, *, transposed: bool = False, interpret: bool = False):
    """Each row times its group's matrix, or its transpose: w is then [E, F, D]."""
    tile = row_tile(len(x_PD), len(loads_E), x_PD.dtype.itemsize * x_PD.shape[1])
    plan = plan_steps(loads_E, len(x_PD), tile)
    return multiply_rows(x_PD, w_EDF, plan, tile, transposed=transposed, interpret=interpret)


def weights_product(x_PD, grad_PF, loads_E, *, interpret: bool = False):
    """[E, D, F]: the sum over each group's rows of x times grad; zeros for a group without rows."""
    tile = row_tile(len(x_PD), len(loads_E), x_PD.dtype.itemsize * max(x_PD.shape[1], grad_PF.shape[1]))
    plan = plan_steps(loads_E, len(x_PD), tile, visit_empty=True)
    return multiply_columns(x_PD, grad_PF, len(loads_E), plan, tile, interpret=interpret)


def suits_tpu(dtype, rows: int, depth: int, width: int) -> bool:
    """Whether these kernels are the faster choice on a TPU: whole lanes, at least a tile of rows, depths that fit."""
    whole = not (depth % LANES or width % LANES) and max(depth, width) <= DEEPEST
    return dtype in (jnp.bfloat16, jnp.float32) and rows >= TILES[-1] and whole
