"""Each row times the matrix of its group, as it is written: every row's matrix is copied."""

import jax
import jax.numpy as jnp


def grouped_matmul_reference(x_PD, w_EDF, loads_E):
    """[P, F]: row p times w[e], e the group whose rows stand there; at least float32 inside."""
    wide = jnp.promote_types(x_PD.dtype, jnp.float32)
    group_P = jnp.repeat(jnp.arange(len(loads_E)), loads_E, total_repeat_length=len(x_PD))
    y_PF = jnp.einsum("PD,PDF->PF", x_PD.astype(wide), w_EDF.astype(wide)[group_P], precision=jax.lax.Precision.HIGHEST)
    return y_PF.astype(x_PD.dtype)
