"""A KL penalty that keeps the policy near a reference; it can be added to the loss of any objective."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.objectives.tokens import Metrics, bounded, check_shape, cleaned, cleaned_weights, mean_by


def reference_kl(
    policy_logps: ArrayLike,
    reference_logps: ArrayLike,
    mask: ArrayLike,
    *,
    coefficient: float,
    aggregate: str = "seq_mean",
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, Metrics]:
    """coefficient · mean of the k3 estimator exp(d) - 1 - d, d = log π_reference - log π_policy (Schulman 2020).

    The estimate is never negative except for round-off. Over tokens sampled from the policy, its mean is
    KL(policy‖reference), but the mean of its gradient is that of KL(reference‖policy). Arrays are [B, T]; the reference
    is a constant; only tokens under `mask` count. `aggregate` is "seq_mean" or "token_mean" as in `grpo_loss`;
    `weights` [B, T] take the place of the mean. Above a third of the dtype's exponent range d is constant (our choice,
    as for ratios). Returns (term to add to a loss, {"reference_kl": mean without coefficient}) in at least float32.
    Raises ValueError for a wrong shape or aggregate.
    """
    check_shape("reference_kl", "reference_logps", reference_logps, jnp.shape(policy_logps))
    check_shape("reference_kl", "mask", mask, jnp.shape(policy_logps))
    live = jnp.asarray(mask) != 0
    dtype = jnp.promote_types(jnp.result_type(policy_logps), jnp.float32)
    reference = jax.lax.stop_gradient(cleaned(reference_logps, live, dtype))
    d = bounded(reference - cleaned(policy_logps, live, dtype))
    weights = cleaned_weights("reference_kl", weights, live, dtype)
    mean = mean_by("reference_kl", aggregate, jnp.expm1(d) - d, live, weights)
    return coefficient * mean, {"reference_kl": jax.lax.stop_gradient(mean)}
