"""IcePop: a mask on the ratio of trainer to inference engine drops tokens on which they disagree."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.objectives.metrics import mask_metrics, token_metrics
from ling_jax.objectives.objective import NO_BOUND, POSITIVE, SEQUENCE_MEAN, Objective, clipped_term, mean_over_rows
from ling_jax.objectives.tokens import (
    Metrics,
    importance_ratio,
    loss_tokens,
    ratio_of,
    sequence_mean,
    surrogate,
    weighted,
)


def icepop_loss(
    policy_logps: ArrayLike,
    old_logps: ArrayLike,
    behaviour_logps: ArrayLike | None,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    alpha: float = 0.5,  # Ring-1T report
    beta: float = 5.0,  # Ring-1T report
    clip: float = 0.2,  # our choice: PPO's; the reports print no number
    entropies: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, Metrics]:
    """IcePop (Ling 2.6 report eq. 5, Ring-1T report).

        J = mean_i 1/|y_i| Σ_t M_it · min(r_it Â_i, clip(r_it, 1±clip) Â_i),   r = π_policy / π_old
        M = k if alpha <= k <= beta else 0,   k = π_old / π_behaviour, a constant

    A kept token has weight M = k, not 1. Arrays are [B, T], advantages [B], or [B, T] with weights; |y_i| counts loss
    tokens before the mask; `weights` [B, T] take the place of the mean. k uses log-probs clipped to [-100, 0], so
    behaviour_logps may be -inf. Returns (-J, metrics) in at least float32. Raises ValueError without behaviour_logps
    and for a wrong shape.
    """
    arrays = (policy_logps, old_logps, behaviour_logps, advantages, mask, weights)
    tokens = loss_tokens("icepop", *arrays, needs_behaviour=True)
    k = importance_ratio(tokens.old, tokens.behaviour)
    keep = (k >= alpha) & (k <= beta)
    ratio = ratio_of(tokens.policy - tokens.old)
    terms, clipped = surrogate(ratio, tokens.advantages, clip, clip)
    metrics = token_metrics("icepop", tokens, ratio, clipped, entropies) | mask_metrics(tokens, keep)
    return -weighted(sequence_mean, jnp.where(keep, k, 0) * terms, tokens.mask, tokens.weights), metrics


def _description(*, alpha: float, beta: float, clip: float) -> str:
    policies = "r = policy/old, k = old/behaviour"
    return f"{SEQUENCE_MEAN} M*{clipped_term(clip, clip)}; {policies}, M = k if {alpha} <= k <= {beta} else 0"


def _stale_flaw(*, beta: float, **options: float) -> str:
    return NO_BOUND if math.isinf(beta) else ""


ICEPOP = Objective(
    loss=icepop_loss,
    options={"alpha": POSITIVE, "beta": POSITIVE, "clip": POSITIVE},
    description=_description,
    normaliser=mean_over_rows,
    stale_flaw=_stale_flaw,
)
