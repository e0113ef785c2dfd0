"""What the objectives share: cleaned inputs, ratios, the clipped surrogate and means over tokens."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MIN_LOGP = -100.0  # our choice: under it a token's log-prob says nothing that a ratio could use


class Tokens(NamedTuple):
    """A batch [B, T] in at least float32, 0 where `mask` is false; all but `policy` are constants."""

    policy: jax.Array
    old: jax.Array
    behaviour: jax.Array | None
    advantages: jax.Array
    mask: jax.Array  # bool


def loss_tokens(
    name: str,
    policy_logps,
    old_logps,
    behaviour_logps,
    advantages,
    mask,
    *,
    needs_behaviour: bool = False,
    token_advantages: bool = False,
) -> Tokens:
    """Checks the arguments of objective `name` and cleans them: the `where` stands before any arithmetic, so masked
    NaN and inf do not come back as 0 · inf in a gradient.

    advantages [B], or [B, T] too with `token_advantages`. Raises ValueError for a missing argument or a wrong shape.
    """
    shape = jnp.shape(policy_logps)
    if len(shape) != 2:
        raise ValueError(f"{name}: policy_logps has shape {shape}; expected [B, T], one log-prob a token")
    check_shape(name, "old_logps", old_logps, shape)
    check_shape(name, "mask", mask, shape)
    if behaviour_logps is not None or needs_behaviour:
        check_shape(name, "behaviour_logps", behaviour_logps, shape)
    per_token = token_advantages and jnp.ndim(advantages) == 2
    check_shape(name, "advantages", advantages, shape if per_token else shape[:1])
    live = jnp.asarray(mask) != 0
    dtype = jnp.promote_types(jnp.result_type(policy_logps), jnp.float32)

    def constant(x):
        return None if x is None else jax.lax.stop_gradient(cleaned(x, live, dtype))

    rows = advantages if per_token else jnp.asarray(advantages)[:, None]
    policy = cleaned(policy_logps, live, dtype)
    return Tokens(policy, constant(old_logps), constant(behaviour_logps), constant(rows), live)


def cleaned(x, mask, dtype):
    """`x` in `dtype` where `mask` is true, 0 elsewhere."""
    return jnp.where(mask, jnp.asarray(x).astype(dtype), 0)


def check_shape(name: str, argument: str, x, shape: tuple[int, ...]) -> None:
    """Raises ValueError, which names the objective and the argument, unless `x` is an array of `shape`."""
    if x is None:
        raise ValueError(f"{name}: {argument} is missing; it needs an array of shape {shape}")
    if jnp.shape(x) != shape:
        raise ValueError(f"{name}: {argument} has shape {jnp.shape(x)}; policy_logps asks for {shape}")


def ratio_of(log_ratio):
    """exp(log_ratio), constant above a third of the dtype's exponent range (e^29 in float32, e^236 in float64).

    So a ratio times an importance weight, summed over a batch, is finite, and infinities never meet as inf - inf. A
    ratio beyond the bound has no gradient. Our choice.
    """
    return jnp.exp(bounded(log_ratio))


def bounded(log_ratio):
    """At most a third of the dtype's exponent range."""
    return jnp.minimum(log_ratio, math.log(jnp.finfo(log_ratio.dtype).max) / 3)


def clipped_logps(logps):
    """Log-probs within [-100, 0]: round-off above 0 and -inf become usable."""
    return jnp.clip(logps, MIN_LOGP, 0)


def importance_ratio(old_logps, behaviour_logps):
    """k = π_old / π_behaviour of clipped log-probs, by `ratio_of`."""
    return ratio_of(clipped_logps(old_logps) - clipped_logps(behaviour_logps))


def surrogate(ratio, advantages, clip_low, clip_high):
    """(min(r Â, clip(r, 1 - clip_low, 1 + clip_high) Â), whether the clip decides), elementwise.

    No gradient where the clip decides, r Â ∇log r elsewhere, the edges of the clip included.
    """
    clipped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    edge = jax.lax.stop_gradient(jnp.clip(ratio, 1 - clip_low, 1 + clip_high))
    return jnp.where(clipped, edge, ratio) * advantages, clipped


def sequence_mean(terms, mask):
    """mean_i 1/|y_i| Σ_t terms over all B rows; |y_i| counts the row's loss tokens, an empty row is 0."""
    lengths = jnp.sum(mask, axis=1, dtype=terms.dtype)
    rows = jnp.sum(terms, axis=1, where=mask) / jnp.maximum(lengths, 1)
    return jnp.sum(rows) / max(terms.shape[0], 1)


def token_mean(terms, mask):
    """Σ terms / Σ_i |y_i| over the whole batch; 0 without loss tokens."""
    return jnp.sum(terms, where=mask) / jnp.maximum(jnp.sum(mask, dtype=terms.dtype), 1)


MEANS = {"seq_mean": sequence_mean, "token_mean": token_mean}


def mean_by(name: str, aggregate: str, terms, mask):
    """The mean that `aggregate` names; ValueError, which names the objective, for any other."""
    if aggregate not in MEANS:
        raise ValueError(f"{name}: aggregate is {aggregate!r}; expected one of {', '.join(MEANS)}")
    return MEANS[aggregate](terms, mask)
