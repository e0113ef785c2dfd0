"""GRPO, and PPO's clipped objective with token-level advantages."""

import jax
from jax.typing import ArrayLike

from ling_jax.objectives.metrics import token_metrics
from ling_jax.objectives.objective import (
    POSITIVE,
    SEQUENCE_MEAN,
    Normaliser,
    Objective,
    clipped_term,
    ignores_behaviour,
    one_of,
)
from ling_jax.objectives.tokens import MEANS, Metrics, loss_tokens, mean_by, ratio_of, surrogate


def grpo_loss(
    policy_logps: ArrayLike,
    old_logps: ArrayLike,
    behaviour_logps: ArrayLike | None,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    clip_low: float = 0.2,  # PPO (Schulman et al. 2017, §6.1) and GRPO
    clip_high: float = 0.2,  # DAPO raises it to 0.28 (Yu et al. 2025, §4.1)
    aggregate: str = "seq_mean",
    entropies: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, Metrics]:
    """GRPO (Shao et al. 2024, §4.1.1) with its PPO clip.

        J = mean_i 1/|y_i| Σ_t min(r_it Â_it, clip(r_it, 1 - clip_low, 1 + clip_high) Â_it),   r = π_policy / π_old

    Arrays are [B, T]; advantages are [B], or [B, T] for PPO. |y_i| is the number of loss tokens of row i. `aggregate`
    is "seq_mean" as written, or "token_mean": Σ_i Σ_t / Σ_i |y_i| (DAPO §4.3); `weights` [B, T] take the place of both.
    `behaviour_logps` serves the mismatch metrics only and may be None. Returns (-J, metrics) in at least float32.
    Raises ValueError for a wrong shape or aggregate.
    """
    arrays = (policy_logps, old_logps, behaviour_logps, advantages, mask, weights)
    tokens = loss_tokens("grpo", *arrays, token_advantages=True)
    ratio = ratio_of(tokens.policy - tokens.old)
    terms, clipped = surrogate(ratio, tokens.advantages, clip_low, clip_high)
    loss = -mean_by("grpo", aggregate, terms, tokens.mask, tokens.weights)
    return loss, token_metrics("grpo", tokens, ratio, clipped, entropies)


def _description(*, clip_low: float, clip_high: float, aggregate: str) -> str:
    mean = SEQUENCE_MEAN if aggregate == "seq_mean" else "1/sum_i |y_i| sum_i sum_t"
    return f"{mean} {clipped_term(clip_low, clip_high)}; r = policy/old, no mask"


def _normaliser(*, aggregate: str, **options: float) -> Normaliser:
    return "rows" if aggregate == "seq_mean" else "tokens"


GRPO = Objective(
    loss=grpo_loss,
    options={"clip_low": POSITIVE, "clip_high": POSITIVE, "aggregate": one_of(*MEANS)},
    description=_description,
    normaliser=_normaliser,
    stale_flaw=ignores_behaviour,
)
