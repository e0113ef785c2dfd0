"""GRPO, and PPO's clipped objective with advantages of tokens."""

from ling_jax.objectives.metrics import token_metrics
from ling_jax.objectives.tokens import loss_tokens, mean_by, ratio_of, surrogate


def grpo_loss(
    policy_logps,
    old_logps,
    behaviour_logps,
    advantages,
    mask,
    *,
    clip_low=0.2,  # PPO (Schulman et al. 2017, §6.1), GRPO's too
    clip_high=0.2,  # DAPO raises it to 0.28 (Yu et al. 2025, §4.1)
    aggregate: str = "seq_mean",
    entropies=None,
):
    """GRPO (Shao et al. 2024, §4.1.1) with its PPO clip.

        J = mean_i 1/|y_i| Σ_t min(r_it Â_it, clip(r_it, 1 - clip_low, 1 + clip_high) Â_it),   r = π_policy / π_old

    All [B, T] but advantages, [B] or [B, T]: PPO's, of tokens. `aggregate`: "seq_mean" as written, |y_i| the row's loss
    tokens, or "token_mean": Σ_i Σ_t / Σ_i |y_i| (DAPO §4.3). `behaviour_logps` is not used but for the mismatch
    metrics and may be None. Returns (-J, metrics); at least float32. Raises ValueError for a wrong shape or aggregate.
    """
    tokens = loss_tokens("grpo", policy_logps, old_logps, behaviour_logps, advantages, mask, token_advantages=True)
    ratio = ratio_of(tokens.policy - tokens.old)
    terms, clipped = surrogate(ratio, tokens.advantages, clip_low, clip_high)
    loss = -mean_by("grpo", aggregate, terms, tokens.mask)
    return loss, token_metrics("grpo", tokens, ratio, clipped, entropies)
