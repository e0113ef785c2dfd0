"""Each row with the matrix of its group, as it is written: every row's matrix is copied."""

import jax.numpy as jnp


def grouped_matmul_reference(x_PD, w_EDF, loads_E):
    """[P, F]: row p times w[e], e the group whose rows stand there; 0 behind them. At least float32 inside."""
    y_PF = jnp.einsum("PE,PD,EDF->PF", _groups(loads_E, x_PD), _wide(x_PD), _wide(w_EDF), precision="highest")
    return y_PF.astype(x_PD.dtype)


def add_grouped_outer_reference(total_EDF, x_PD, y_PF, loads_E):
    """[E, D, F]: the total and each group's sum of x^T y over its rows; at least float32 inside."""
    sum_EDF = jnp.einsum("PE,PD,PF->EDF", _groups(loads_E, x_PD), _wide(x_PD), _wide(y_PF), precision="highest")
    return (_wide(total_EDF) + sum_EDF).astype(total_EDF.dtype)


def _groups(loads_E, x_PD):
    """[P, E] 1 where the row is of the group."""
    ends_E = jnp.cumsum(loads_E)
    row_P1 = jnp.arange(len(x_PD))[:, None]
    return ((row_P1 >= ends_E - loads_E) & (row_P1 < ends_E)).astype(_wide(x_PD).dtype)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
