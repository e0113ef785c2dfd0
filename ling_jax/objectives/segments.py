"""Means and ratios of segments under jit for arbitrary integer ids."""

import jax
import jax.numpy as jnp

from ling_jax.objectives.tokens import Tokens, ratio_of


def dense_ids(ids: jax.Array) -> jax.Array:
    """[N] integers renumbered 0, 1, 2, … in ascending order of id; equal ids get equal numbers."""
    return jnp.unique(ids, size=ids.shape[0], return_inverse=True)[1]


def segment_mean(values: jax.Array, mask: jax.Array, ids: jax.Array) -> jax.Array:
    """[N]: the mean of `values` [N] under `mask` that share the id of each place; 0 if there are none."""
    dense = dense_ids(ids)
    total = jax.ops.segment_sum(jnp.where(mask, values, 0), dense, values.size)
    count = jax.ops.segment_sum(mask.astype(values.dtype), dense, values.size)
    return (total / jnp.maximum(count, 1))[dense]


def segment_ratio(tokens: Tokens, ids: jax.Array) -> jax.Array:
    """exp(mean of log π_policy - log π_old over the loss tokens of a row that share an id), at each token, [B, T]."""
    return ratio_of(jax.vmap(segment_mean)(tokens.policy - tokens.old, tokens.mask, ids))
