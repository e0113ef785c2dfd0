"""Truncated importance sampling: a bounded weight for the mismatch between trainer and inference engine."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.objectives.metrics import token_metrics
from ling_jax.objectives.objective import NO_BOUND, POSITIVE, SEQUENCE_MEAN, Objective, clipped_term, mean_over_rows
from ling_jax.objectives.tokens import Metrics, loss_tokens, ratio_of, sequence_mean, surrogate, token_mean, weighted


def tis_loss(
    policy_logps: ArrayLike,
    old_logps: ArrayLike,
    behaviour_logps: ArrayLike | None,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    cap: float = 2.0,  # our choice: common in open RL code
    clip: float = 0.2,  # our choice: PPO's
    entropies: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, Metrics]:
    """GRPO with truncated importance sampling (TIS; Yao et al. 2025).

        J = mean_i 1/|y_i| Σ_t w_it · min(r_it Â_i, clip(r_it, 1±clip) Â_i),   r = π_policy / π_old
        w = min(π_old / π_behaviour, cap), a constant

    Arrays are [B, T], advantages [B], or [B, T] with weights. Returns (-J, metrics) in at least float32. Raises
    ValueError without behaviour_logps and for a wrong shape.
    """
    arrays = (policy_logps, old_logps, behaviour_logps, advantages, mask, weights)
    tokens = loss_tokens("tis", *arrays, needs_behaviour=True)
    k = ratio_of(tokens.old - tokens.behaviour)
    ratio = ratio_of(tokens.policy - tokens.old)
    terms, clipped = surrogate(ratio, tokens.advantages, clip, clip)
    metrics = token_metrics("tis", tokens, ratio, clipped, entropies)
    metrics["truncated_fraction"] = token_mean((k > cap).astype(k.dtype), tokens.mask)
    return -weighted(sequence_mean, jnp.minimum(k, cap) * terms, tokens.mask, tokens.weights), metrics


def _description(*, cap: float, clip: float) -> str:
    weight = f"w = min(old/behaviour, {cap})"
    return f"{SEQUENCE_MEAN} w*{clipped_term(clip, clip)}; r = policy/old, {weight}, no mask"


def _stale_flaw(*, cap: float, **options: float) -> str:
    return NO_BOUND if math.isinf(cap) else ""


TIS = Objective(
    loss=tis_loss,
    options={"cap": POSITIVE, "clip": POSITIVE},
    description=_description,
    normaliser=mean_over_rows,
    stale_flaw=_stale_flaw,
)
