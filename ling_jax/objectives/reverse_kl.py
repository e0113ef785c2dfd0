"""On-policy distillation: the reverse KL from a policy to a teacher, on tokens that the policy drew."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.objectives.metrics import token_metrics
from ling_jax.objectives.objective import NO_BOUND, POSITIVE, Normaliser, Objective
from ling_jax.objectives.tokens import (
    Metrics,
    check_shape,
    cleaned,
    clipped_logps,
    loss_tokens,
    ratio_of,
    token_mean,
    weighted,
)


def reverse_kl_loss(
    policy_logps: ArrayLike,
    old_logps: ArrayLike,
    behaviour_logps: ArrayLike | None,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    teacher_logps: ArrayLike,
    cap: float = 2.0,  # our choice: that of `tis_loss`
    entropies: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, Metrics]:
    """Reverse KL per token, KL(policy‖teacher) at each prefix that the policy wrote (GKD, Agarwal et al. 2024, with
    reverse KL and data of the student alone; Lu 2025, "On-Policy Distillation").

        J = 1/Σ|y_i| Σ_i Σ_t w_it · (log π_teacher - log π_policy),   w = min(π_policy / π_behaviour, cap), a constant

    A token's gradient is w · (log π_teacher - log π_policy) ∇log π_policy. Its mean over tokens drawn from the policy
    is exactly that of the KL at this prefix, and so it is under an older policy as long as no w is capped; how a token
    changes later prefixes does not count. The loss, -J, estimates the KL in nats and may be negative by chance.

    Arrays are [B, T], advantages [B], which are not used; `old_logps` are for metrics only. Log-probs of the policy and
    the teacher are clipped to [-100, 0]. Returns (-J, metrics) in at least float32; `reverse_kl` is the loss. Raises
    ValueError without teacher_logps and for a wrong shape. Without behaviour_logps all w are 1.
    """
    tokens = loss_tokens("reverse_kl", policy_logps, old_logps, behaviour_logps, advantages, mask, weights)
    check_shape("reverse_kl", "teacher_logps", teacher_logps, tokens.mask.shape)
    policy = jax.lax.stop_gradient(tokens.policy)
    teacher = jax.lax.stop_gradient(cleaned(teacher_logps, tokens.mask, policy.dtype))
    gap = clipped_logps(policy) - clipped_logps(teacher)
    weight = jnp.ones_like(policy) if tokens.behaviour is None else ratio_of(policy - tokens.behaviour)
    one = ratio_of(tokens.policy - policy)  # 1, with the gradient of log π
    loss = weighted(token_mean, jnp.minimum(weight, cap) * gap * one, tokens.mask, tokens.weights)
    capped = weight > cap
    metrics = token_metrics("reverse_kl", tokens, ratio_of(policy - tokens.old), capped, entropies)
    metrics["truncated_fraction"] = metrics.pop("clip_fraction")
    return loss, metrics | {"reverse_kl": jax.lax.stop_gradient(loss)}


def _description(*, cap: float) -> str:
    return f"mean over tokens w*(log teacher - log policy); w = min(policy/behaviour, {cap})"


def _normaliser(**options: float) -> Normaliser:
    return "tokens"


def _stale_flaw(*, cap: float) -> str:
    return NO_BOUND if math.isinf(cap) else ""


REVERSE_KL = Objective(
    loss=reverse_kl_loss,
    options={"cap": POSITIVE},
    description=_description,
    normaliser=_normaliser,
    stale_flaw=_stale_flaw,
)
