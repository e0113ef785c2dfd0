"""A penalty that holds the policy near a reference; it adds to any objective's loss."""

import jax
import jax.numpy as jnp

from ling_jax.objectives.tokens import bounded, check_shape, cleaned, mean_by


def reference_kl(policy_logps, reference_logps, mask, *, coefficient, aggregate: str = "seq_mean"):
    """coefficient · mean of the k3 estimator exp(d) - 1 - d, d = log π_reference - log π_policy (Schulman 2020).

    Not negative but for round-off. Over tokens that the policy samples its mean is KL(policy‖reference), while the mean
    of its gradient is that of KL(reference‖policy). All [B, T], the reference a constant; nothing under a false mask
    counts. `aggregate` as in `grpo_loss`: "seq_mean" or "token_mean". d is bounded above, without a gradient there, at
    a third of the dtype's exponent range (our choice, as for ratios). Returns (a term to add to a loss,
    {"reference_kl": the mean without coefficient}); at least float32. Raises ValueError for a wrong shape or aggregate.
    """
    check_shape("reference_kl", "reference_logps", reference_logps, jnp.shape(policy_logps))
    check_shape("reference_kl", "mask", mask, jnp.shape(policy_logps))
    live = jnp.asarray(mask) != 0
    dtype = jnp.promote_types(jnp.result_type(policy_logps), jnp.float32)
    reference = jax.lax.stop_gradient(cleaned(reference_logps, live, dtype))
    d = bounded(reference - cleaned(policy_logps, live, dtype))
    mean = mean_by("reference_kl", aggregate, jnp.expm1(d) - d, live)
    return coefficient * mean, {"reference_kl": jax.lax.stop_gradient(mean)}
