"""References of the grouped matmuls in plain einsums."""

import jax
import jax.numpy as jnp


def grouped_matmul_reference(x_PD: jax.Array, w_EDF: jax.Array, loads_E: jax.Array) -> jax.Array:
    """Row p times w[e] of its group e, [P, F] in x's dtype; 0 for rows of no group. Sums are in at least float32.

    x [P, D], w [E, D, F], loads [E] int32 rows of each group in order.
    """
    y_PF = jnp.einsum("PE,PD,EDF->PF", _groups(loads_E, x_PD), _wide(x_PD), _wide(w_EDF), precision="highest")
    return y_PF.astype(x_PD.dtype)


def add_grouped_outer_reference(
    total_EDF: jax.Array, x_PD: jax.Array, y_PF: jax.Array, loads_E: jax.Array
) -> jax.Array:
    """total + x^T y over the rows of each group, [E, D, F] in total's dtype; sums are in at least float32.

    x [P, D], y [P, F], loads [E] int32.
    """
    sum_EDF = jnp.einsum("PE,PD,PF->EDF", _groups(loads_E, x_PD), _wide(x_PD), _wide(y_PF), precision="highest")
    return (_wide(total_EDF) + sum_EDF).astype(total_EDF.dtype)


def _groups(loads_E, x_PD):
    """[P, E]: 1 if the row belongs to the group, else 0."""
    ends_E = jnp.cumsum(loads_E)
    row_P1 = jnp.arange(len(x_PD))[:, None]
    return ((row_P1 >= ends_E - loads_E) & (row_P1 < ends_E)).astype(_wide(x_PD).dtype)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
