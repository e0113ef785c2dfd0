"""GSPO: the ratio of a whole answer."""

import jax.numpy as jnp

from ling_jax.objectives.metrics import token_metrics
from ling_jax.objectives.tokens import Tokens, loss_tokens, ratio_of, sequence_mean, surrogate


def sequence_ratio(tokens: Tokens):
    """s_i = exp(1/|y_i| Σ_t (log π_policy - log π_old)), [B]; 1 for a row without loss tokens."""
    length = jnp.maximum(jnp.sum(tokens.mask, axis=1), 1)
    return ratio_of(jnp.sum(tokens.policy - tokens.old, axis=1) / length)


def gspo_loss(
    policy_logps,
    old_logps,
    behaviour_logps,
    advantages,
    mask,
    *,
    clip_low=3e-4,  # Zheng et al. 2025, §5.1
    clip_high=4e-4,  # Zheng et al. 2025, §5.1
    entropies=None,
):
    """GSPO (Zheng et al. 2025, §4.1): clipped objective on the geometric mean of a row's ratios.

        J = mean_i min(s_i Â_i, clip(s_i, 1 - clip_low, 1 + clip_high) Â_i)
        s_i = exp(1/|y_i| Σ_t log(π_policy / π_old))

    All [B, T] but advantages [B]. `behaviour_logps` is not used but for the mismatch metrics and may be None. Returns
    (-J, metrics); at least float32; a row counts in the metrics by its tokens. Raises ValueError for a wrong shape.
    """
    tokens = loss_tokens("gspo", policy_logps, old_logps, behaviour_logps, advantages, mask)
    # The mean over a row's equal terms is the row's term.
    ratio = jnp.broadcast_to(sequence_ratio(tokens)[:, None], tokens.mask.shape)
    terms, clipped = surrogate(ratio, tokens.advantages, clip_low, clip_high)
    return -sequence_mean(terms, tokens.mask), token_metrics("gspo", tokens, ratio, clipped, entropies)
