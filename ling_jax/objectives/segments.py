"""Sums over ids that jit can take: any integers, numbered anew."""

import jax
import jax.numpy as jnp


def dense_ids(ids):
    """[N] integers to 0, 1, 2, … in their order, equal ones to the same; all are under N."""
    return jnp.unique(ids, size=ids.shape[0], return_inverse=True)[1]


def segment_mean(values, mask, ids):
    """The mean of `values` [N] over those under `mask` with the same id, at each of the N places; 0 where none is."""
    dense = dense_ids(ids)
    total = jax.ops.segment_sum(jnp.where(mask, values, 0), dense, values.size)
    count = jax.ops.segment_sum(mask.astype(values.dtype), dense, values.size)
    return (total / jnp.maximum(count, 1))[dense]
