"""Document numbers of packed rows."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def document_ids(segment_ids: ArrayLike) -> jax.Array:
    """The document number of each token, 1, 2, … in each row, [B, T] int32; 0 for padding.

    A document is a maximal run of equal non-zero segment ids [B, T]; an id that returns after padding or another id is
    a new document.
    """
    segment_ids = jnp.asarray(segment_ids)
    live = segment_ids != 0
    previous = jnp.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
    return jnp.cumsum(live & (segment_ids != previous), axis=1, dtype=jnp.int32) * live
