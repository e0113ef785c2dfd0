"""KPop: a mask on the binary KL in both directions drops tokens on which trainer and inference engine disagree."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.objectives.metrics import mask_metrics, masked_quantile, token_metrics
from ling_jax.objectives.objective import (
    FLAG,
    NO_BOUND,
    POSITIVE,
    POSITIVE_OR_NONE,
    SEQUENCE_MEAN,
    Objective,
    clipped_term,
    mean_over_rows,
    one_of,
)
from ling_jax.objectives.tokens import (
    Metrics,
    check_shape,
    cleaned,
    clipped_logps,
    importance_ratio,
    loss_tokens,
    ratio_of,
    sequence_mean,
    surrogate,
    weighted,
)

MIN_REST = 1e-6  # our choice: minimum probability of "any other token"; float32 cannot represent 1 - 1e-8
KAPPAS = ("ratio", "one")


def binary_kl(p_logps: ArrayLike, q_logps: ArrayLike) -> jax.Array:
    """The binary KL D(p‖q) of "this token or any other", elementwise, in nats (Ling 2.6 report §3.2.3).

        D = max(0, p (log p - log q) + p̄ (log p̄ - log q̄)),   p̄ = max(1 - p, 1e-6)

    The arguments are log p and log q of the token, clipped to [-100, 0]; round-off above 0 and -inf are allowed. The
    floor of p̄ applies to weight and logarithm alike; p is not renormalised. Equal inputs give exactly 0. The result is
    in at least float32 and is not meant for gradients.
    """
    dtype = jnp.promote_types(jnp.result_type(p_logps, q_logps), jnp.float32)
    p, q = (clipped_logps(jnp.asarray(x).astype(dtype)) for x in (p_logps, q_logps))
    rest_p, rest_q = log_rest(p), log_rest(q)
    return jnp.maximum(0, jnp.exp(p) * (p - q) + jnp.exp(rest_p) * (rest_p - rest_q))


def log_rest(logps: jax.Array) -> jax.Array:
    """log max(1 - p, 1e-6) from log p <= 0, elementwise; each branch is used where it is accurate."""
    near_one = jnp.log(-jnp.expm1(logps))
    near_zero = jnp.log1p(-jnp.exp(logps))
    return jnp.maximum(jnp.where(logps > -math.log(2), near_one, near_zero), math.log(MIN_REST))


def kpop_mask(old_logps: ArrayLike, behaviour_logps: ArrayLike, phi: ArrayLike, *, symmetric: bool = True) -> jax.Array:
    """bool, elementwise: D(old‖behaviour) <= phi and, if `symmetric`, D(behaviour‖old) <= phi."""
    keep = binary_kl(old_logps, behaviour_logps) <= phi
    return keep & (binary_kl(behaviour_logps, old_logps) <= phi) if symmetric else keep


def kpop_loss(
    policy_logps: ArrayLike,
    old_logps: ArrayLike,
    behaviour_logps: ArrayLike | None,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    phi: ArrayLike = 0.1,  # our choice: the report gives no value; `calibrate_phi` finds it from a masked fraction
    symmetric: bool = True,
    kappa: str = "ratio",
    kappa_cap: float | None = None,
    clip: float = 0.2,  # our choice: PPO's; the report prints no number
    entropies: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, Metrics]:
    """KPop (Ling 2.6 report §3.2.3): IcePop's eq. 5 with a binary-KL mask.

        J = mean_i 1/|y_i| Σ_t M_it · κ_it · min(r_it Â_i, clip(r_it, 1±clip) Â_i),   r = π_policy / π_old
        M = 1 if D(old‖behaviour) <= phi and D(behaviour‖old) <= phi else 0
        κ = π_old / π_behaviour, at most kappa_cap if there is one;   or 1 with kappa="one"

    The report prints M but not J. κ = the ratio follows its authors' code and IcePop; kappa="one" is the literal
    reading. Without `symmetric`, M bounds D(old‖behaviour) only. M and κ are constants. Arrays are [B, T], advantages
    [B], or [B, T] with weights; |y_i| counts loss tokens before the mask; `weights` [B, T] take the place of the mean.
    phi does not bound κ: with phi = 0.1, a token whose probability goes from 1e-6 to 0.01 is kept and weighs 10,000
    unless `kappa_cap` bounds it. M and κ clip log-probs as `binary_kl` does, so behaviour_logps may be -inf. Returns
    (-J, metrics) in at least float32. Raises ValueError without behaviour_logps, for a wrong shape and for an unknown
    kappa.
    """
    if kappa not in KAPPAS:
        raise ValueError(f"kpop: kappa is {kappa!r}; expected one of {', '.join(KAPPAS)}")
    arrays = (policy_logps, old_logps, behaviour_logps, advantages, mask, weights)
    tokens = loss_tokens("kpop", *arrays, needs_behaviour=True)
    keep = kpop_mask(tokens.old, tokens.behaviour, phi, symmetric=symmetric)
    weight = importance_ratio(tokens.old, tokens.behaviour) if kappa == "ratio" else jnp.ones_like(tokens.old)
    if kappa_cap is not None:
        weight = jnp.minimum(weight, kappa_cap)
    ratio = ratio_of(tokens.policy - tokens.old)
    terms, clipped = surrogate(ratio, tokens.advantages, clip, clip)
    metrics = token_metrics("kpop", tokens, ratio, clipped, entropies) | mask_metrics(tokens, keep)
    return -weighted(sequence_mean, jnp.where(keep, weight, 0) * terms, tokens.mask, tokens.weights), metrics


def calibrate_phi(
    old_logps: ArrayLike,
    behaviour_logps: ArrayLike,
    mask: ArrayLike,
    target_fraction: ArrayLike,
    *,
    symmetric: bool = True,
) -> jax.Array:
    """The phi with which KPop's mask drops `target_fraction` of the loss tokens.

    phi is the (1 - target_fraction) quantile over loss tokens of max(D(old‖behaviour), D(behaviour‖old)), or without
    `symmetric` of D(old‖behaviour), and one of these values. If all values differ, the mask meets the target to within
    one token. Arrays are [B, T]; returns a scalar, 0 without loss tokens. Raises ValueError for a wrong shape.
    """
    live = jnp.asarray(mask) != 0
    check_shape("calibrate_phi", "behaviour_logps", behaviour_logps, jnp.shape(old_logps))
    check_shape("calibrate_phi", "mask", mask, jnp.shape(old_logps))
    dtype = jnp.promote_types(jnp.result_type(old_logps), jnp.float32)
    old, behaviour = cleaned(old_logps, live, dtype), cleaned(behaviour_logps, live, dtype)
    widest = binary_kl(old, behaviour)
    if symmetric:
        widest = jnp.maximum(widest, binary_kl(behaviour, old))
    return jax.lax.stop_gradient(masked_quantile(widest, live, 1 - target_fraction))


def _description(*, phi: float | str, symmetric: bool, kappa: str, kappa_cap: float | None, clip: float) -> str:
    weight = "old/behaviour" if kappa == "ratio" else "1"
    weight = weight if kappa_cap is None else f"min({weight}, {kappa_cap})"
    mask = f"D(old||behaviour) <= {phi}" + (f" and D(behaviour||old) <= {phi}" if symmetric else "")
    return f"{SEQUENCE_MEAN} M*kappa*{clipped_term(clip, clip)}; r = policy/old, kappa = {weight}, M = {mask}"


def _stale_flaw(*, phi: float, kappa: str, kappa_cap: float | None, **options: float) -> str:
    """phi bounds a divergence and not the ratio, so that a rare token may weigh thousands; `kappa_cap` bounds it. Only
    a mask that drops nothing is a flaw."""
    return NO_BOUND if math.isinf(phi) and kappa == "ratio" and kappa_cap is None else ""


KPOP = Objective(
    loss=kpop_loss,
    options={
        "phi": POSITIVE,
        "symmetric": FLAG,
        "kappa": one_of(*KAPPAS),
        "kappa_cap": POSITIVE_OR_NONE,
        "clip": POSITIVE,
    },
    description=_description,
    normaliser=mean_over_rows,
    stale_flaw=_stale_flaw,
)
