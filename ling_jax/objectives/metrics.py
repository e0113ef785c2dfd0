"""What the objectives report of a batch. Loss tokens only, no gradient, 0 where there are none.

Of every objective:
    clip_fraction           tokens whose term the clip decides
    ratio/0.01, /0.5, /0.99 quantiles over tokens of the ratio that is clipped (of a sentence or sequence: its tokens')
    mismatch/mean, /max     |log π_old - log π_behaviour| of log-probs clipped to [-100, 0]; if given behaviour_logps
    entropy                 mean over tokens; if given entropies
Of objectives with a mask (IcePop, KPop):
    masked_fraction         tokens that the mask drops, of all
    masked_fraction/a-b     the same among tokens whose probability under the behaviour policy is in [a, b), the last
                            band in [a, b]
Of TIS:
    truncated_fraction      tokens whose weight is the cap
"""

import itertools

import jax
import jax.numpy as jnp

from ling_jax.objectives.tokens import Tokens, check_shape, cleaned, clipped_logps, token_mean

RATIO_LEVELS = (0.01, 0.5, 0.99)
BAND_EDGES = (0, 0.1, 0.5, 0.9, 0.99, 1)  # our choice: a binary-KL bound is loose for rare tokens, tight for sure ones


def token_metrics(name: str, tokens: Tokens, ratio, clipped, entropies=None) -> dict[str, jax.Array]:
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


def mask_metrics(tokens: Tokens, keep) -> dict[str, jax.Array]:
    """The metrics of objectives that drop loss tokens where `keep` [B, T] is false."""
    dropped = 1 - keep.astype(tokens.policy.dtype)
    metrics = {"masked_fraction": token_mean(dropped, tokens.mask)}
    probability = jnp.exp(clipped_logps(tokens.behaviour))
    for low, high in itertools.pairwise(BAND_EDGES):
        below = probability <= high if high == BAND_EDGES[-1] else probability < high
        band = tokens.mask & (probability >= low) & below
        metrics[f"masked_fraction/{low}-{high}"] = token_mean(dropped, band)
    return metrics


def masked_quantile(values, mask, level):
    """The least of the values under `mask` that at least the share `level` of them does not exceed; 0 without any.

    It is always one of the values; `level` may be traced. Shapes equal, any; the values must be finite.
    """
    # One more place, so that an empty array has a place to look at.
    ordered = jnp.append(jnp.sort(jnp.where(mask, values, jnp.inf), axis=None), jnp.inf)
    count = jnp.sum(mask)
    rank = jnp.ceil(level * count).astype(int) - 1
    return jnp.where(count > 0, ordered[jnp.clip(rank, 0, jnp.maximum(count - 1, 0))], 0)
