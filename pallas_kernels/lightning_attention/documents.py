"""Documents in a packed row."""

import jax.numpy as jnp


def document_ids(segment_ids):
    """Numbers the documents of each row 1, 2, … [B, T] int32; 0 is padding.

    A document is a maximal run of equal non-zero segment ids: an id that comes again after padding or after
    another id is another document.
    """
    segment_ids = jnp.asarray(segment_ids)
    live = segment_ids != 0
    previous = jnp.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
    return jnp.cumsum(live & (segment_ids != previous), axis=1, dtype=jnp.int32) * live
