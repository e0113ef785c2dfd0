"""Metrics of objectives: scalars over loss tokens, without gradient, 0 if there are none.

Every objective:
    clip_fraction           share of tokens whose term the clip decides
    ratio/0.01, /0.5, /0.99 quantiles over tokens of the clipped ratio (of the token's sentence or sequence)
    mismatch/mean, /max     |log π_old - log π_behaviour| with log-probs clipped to [-100, 0]; needs behaviour_logps
    entropy                 mean over tokens, nats; needs entropies
Objectives with a mask (IcePop, KPop):
    masked_fraction         share of tokens that the mask drops
    masked_fraction/a-b     the same among tokens with behaviour probability in [a, b); the last band includes b
TIS:
    truncated_fraction      share of tokens whose weight is the cap
"""

import itertools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.objectives.tokens import Metrics, Tokens, check_shape, cleaned, clipped_logps, token_mean

RATIO_LEVELS = (0.01, 0.5, 0.99)
# Our choice: a binary-KL bound is loose for rare tokens and tight for near-certain ones.
BAND_EDGES = (0, 0.1, 0.5, 0.9, 0.99, 1)


def token_metrics(
    name: str, tokens: Tokens, ratio: jax.Array, clipped: jax.Array, entropies: ArrayLike | None = None
) -> Metrics:
    """The metrics of every objective; `ratio`, `clipped` and `entropies` are [B, T]."""
    mask, dtype = tokens.mask, tokens.policy.dtype
    metrics = {"clip_fraction": token_mean(clipped.astype(dtype), mask)}
    metrics |= {f"ratio/{level}": masked_quantile(ratio, mask, level) for level in RATIO_LEVELS}
    if tokens.behaviour is not None:
        mismatch = jnp.abs(clipped_logps(tokens.old) - clipped_logps(tokens.behaviour))
        metrics["mismatch/mean"] = token_mean(mismatch, mask)
        metrics["mismatch/max"] = jnp.max(mismatch, where=mask, initial=0)
    if entropies is not None:
        check_shape(name, "entropies", entropies, mask.shape)
        metrics["entropy"] = token_mean(cleaned(entropies, mask, dtype), mask)
    return jax.lax.stop_gradient(metrics)


def mask_metrics(tokens: Tokens, keep: jax.Array) -> Metrics:
    """The metrics of objectives with a mask; `keep` [B, T] is false on dropped tokens."""
    dropped = 1 - keep.astype(tokens.policy.dtype)
    metrics = {"masked_fraction": token_mean(dropped, tokens.mask)}
    probability = jnp.exp(clipped_logps(tokens.behaviour))
    for low, high in itertools.pairwise(BAND_EDGES):
        below = probability <= high if high == BAND_EDGES[-1] else probability < high
        band = tokens.mask & (probability >= low) & below
        metrics[f"masked_fraction/{low}-{high}"] = token_mean(dropped, band)
    return metrics


def masked_quantile(values: jax.Array, mask: jax.Array, level: ArrayLike) -> jax.Array:
    """The smallest value under `mask` with at least the share `level` of the values at or below it; 0 without values.

    The result is a scalar and one of the values. `values` (finite) and `mask` have equal shapes; `level` may be traced.
    The value is found bit by bit from counts, so that arrays which a mesh splits are neither gathered nor sorted.
    """
    keys, bits = _ordered_keys(values)
    count = jnp.sum(mask)
    rank = jnp.clip(jnp.ceil(level * count).astype(int), 1, jnp.maximum(count, 1))

    def search(i, least):  # the largest key that fewer than `rank` keys are below
        higher = least | (jnp.ones((), keys.dtype) << (bits - 1 - i).astype(keys.dtype))
        return jnp.where(jnp.sum(mask & (keys < higher)) < rank, higher, least)

    key = jax.lax.fori_loop(0, bits, search, jnp.zeros((), keys.dtype))
    return jnp.where(count > 0, jnp.max(values, where=mask & (keys == key), initial=-jnp.inf), 0)


def _ordered_keys(values: jax.Array) -> tuple[jax.Array, int]:
    """(unsigned integers in the order of the floats, their number of bits)."""
    bits = 8 * values.dtype.itemsize
    keys = jax.lax.bitcast_convert_type(values, jnp.dtype(f"uint{bits}"))
    sign = jnp.ones((), keys.dtype) << jnp.asarray(bits - 1, keys.dtype)
    return jnp.where(keys & sign, ~keys, keys | sign), bits
