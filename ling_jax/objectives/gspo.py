"""GSPO: one ratio for each answer."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.objectives.metrics import token_metrics
from ling_jax.objectives.objective import POSITIVE, Objective, clipped_term, ignores_behaviour, mean_over_rows
from ling_jax.objectives.segments import segment_ratio
from ling_jax.objectives.tokens import (
    Metrics,
    Tokens,
    check_shape,
    loss_tokens,
    ratio_of,
    sequence_mean,
    surrogate,
    weighted,
)


def sequence_ratio(tokens: Tokens) -> jax.Array:
    """s_i = exp(1/|y_i| Σ_t (log π_policy - log π_old)), [B]; 1 for a row without loss tokens."""
    length = jnp.maximum(jnp.sum(tokens.mask, axis=1), 1)
    return ratio_of(jnp.sum(tokens.policy - tokens.old, axis=1) / length)


def answer_ratio(tokens: Tokens, answer_ids: ArrayLike | None) -> jax.Array:
    """s_i of the answer of each token, [B, T]: of its row, or of the tokens that share its id of `answer_ids`."""
    if answer_ids is None:
        return jnp.broadcast_to(sequence_ratio(tokens)[:, None], tokens.mask.shape)
    check_shape("gspo", "answer_ids", answer_ids, tokens.mask.shape)
    return segment_ratio(tokens, jnp.asarray(answer_ids))


def gspo_loss(
    policy_logps: ArrayLike,
    old_logps: ArrayLike,
    behaviour_logps: ArrayLike | None,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    clip_low: float = 3e-4,  # Zheng et al. 2025, §5.1
    clip_high: float = 4e-4,  # Zheng et al. 2025, §5.1
    answer_ids: ArrayLike | None = None,
    entropies: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, Metrics]:
    """GSPO (Zheng et al. 2025, §4.1): clipped objective on the geometric mean of a row's ratios.

        J = mean_i min(s_i Â_i, clip(s_i, 1 - clip_low, 1 + clip_high) Â_i)
        s_i = exp(1/|y_i| Σ_t log(π_policy / π_old))

    Arrays are [B, T], advantages [B], or [B, T] with weights. An answer is a row; rows of several answers need
    `answer_ids` [B, T], integers, and `weights` [B, T] in place of the mean. `behaviour_logps` serves the mismatch
    metrics only and may be None. Returns (-J, metrics) in at least float32; metrics weigh an answer by its loss tokens.
    Raises ValueError for a wrong shape.
    """
    tokens = loss_tokens("gspo", policy_logps, old_logps, behaviour_logps, advantages, mask, weights)
    ratio = answer_ratio(tokens, answer_ids)  # all terms of an answer are equal, so their mean is the term
    terms, clipped = surrogate(ratio, tokens.advantages, clip_low, clip_high)
    loss = -weighted(sequence_mean, terms, tokens.mask, tokens.weights)
    return loss, token_metrics("gspo", tokens, ratio, clipped, entropies)


def _description(*, clip_low: float, clip_high: float) -> str:
    return f"mean_i {clipped_term(clip_low, clip_high, ratio='s_i')}; s_i = exp(mean_t log(policy/old)), no mask"


GSPO = Objective(
    loss=gspo_loss,
    options={"clip_low": POSITIVE, "clip_high": POSITIVE},
    description=_description,
    normaliser=mean_over_rows,
    stale_flaw=ignores_behaviour,
)
