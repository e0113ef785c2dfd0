"""Shared parts of the objectives: input checks, ratios, the clipped surrogate and means over tokens."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

Metrics = dict[str, jax.Array]  # {name: scalar}
MIN_LOGP = -100.0  # our choice: lower log-probs carry no usable information


class Tokens(NamedTuple):
    """A batch [B, T] in at least float32, 0 where `mask` is false; only `policy` has gradients."""

    policy: jax.Array
    old: jax.Array
    behaviour: jax.Array | None
    advantages: jax.Array
    mask: jax.Array  # bool
    weights: jax.Array | None = None  # of each token, in place of the objective's mean


def loss_tokens(
    name: str,
    policy_logps: ArrayLike,
    old_logps: ArrayLike,
    behaviour_logps: ArrayLike | None,
    advantages: ArrayLike,
    mask: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    needs_behaviour: bool = False,
    token_advantages: bool = False,
) -> Tokens:
    """Checks the arguments of objective `name` and zeroes masked values before any arithmetic.

    So a masked NaN or inf cannot return as 0 · inf in a gradient. Advantages are [B]; with `weights` [B, T] or
    `token_advantages` [B, T] is allowed too. Raises ValueError for a missing argument or a wrong shape.
    """
    shape = jnp.shape(policy_logps)
    if len(shape) != 2:
        raise ValueError(f"{name}: policy_logps has shape {shape}; expected [B, T], one log-prob a token")
    check_shape(name, "old_logps", old_logps, shape)
    check_shape(name, "mask", mask, shape)
    if behaviour_logps is not None or needs_behaviour:
        check_shape(name, "behaviour_logps", behaviour_logps, shape)
    per_token = (token_advantages or weights is not None) and jnp.ndim(advantages) == 2
    check_shape(name, "advantages", advantages, shape if per_token else shape[:1])
    live = jnp.asarray(mask) != 0
    dtype = jnp.promote_types(jnp.result_type(policy_logps), jnp.float32)

    def constant(x):
        return None if x is None else jax.lax.stop_gradient(cleaned(x, live, dtype))

    rows = advantages if per_token else jnp.asarray(advantages)[:, None]
    policy = cleaned(policy_logps, live, dtype)
    weights = cleaned_weights(name, weights, live, dtype)
    return Tokens(policy, constant(old_logps), constant(behaviour_logps), constant(rows), live, weights)


def cleaned(x: ArrayLike, mask: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`x` in `dtype` where `mask` is true, 0 elsewhere."""
    return jnp.where(mask, jnp.asarray(x).astype(dtype), 0)


def cleaned_weights(name: str, weights: ArrayLike | None, mask: jax.Array, dtype: DTypeLike) -> jax.Array | None:
    """Weights [B, T] of objective `name` in `dtype`, 0 where `mask` is false. Raises ValueError for a wrong shape."""
    if weights is None:
        return None
    check_shape(name, "weights", weights, mask.shape)
    return cleaned(weights, mask, dtype)


def check_shape(name: str, argument: str, x: ArrayLike | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError with the objective `name` and `argument` unless `x` is an array of `shape`."""
    if x is None:
        raise ValueError(f"{name}: {argument} is missing; it needs an array of shape {shape}")
    if jnp.shape(x) != shape:
        raise ValueError(f"{name}: {argument} has shape {jnp.shape(x)}; policy_logps asks for {shape}")


def ratio_of(log_ratio: jax.Array) -> jax.Array:
    """exp(log_ratio), constant above a third of the dtype's exponent range (e^29 in float32, e^236 in float64).

    The bound keeps a ratio times an importance weight finite, also summed over a batch, and avoids inf - inf. A ratio
    beyond it has no gradient. Our choice.
    """
    return jnp.exp(bounded(log_ratio))


def bounded(log_ratio: jax.Array) -> jax.Array:
    """`log_ratio`, at most a third of the dtype's exponent range."""
    return jnp.minimum(log_ratio, math.log(jnp.finfo(log_ratio.dtype).max) / 3)


def clipped_logps(logps: jax.Array) -> jax.Array:
    """Log-probs clipped to [-100, 0], which removes round-off above 0 and -inf."""
    return jnp.clip(logps, MIN_LOGP, 0)


def importance_ratio(old_logps: jax.Array, behaviour_logps: jax.Array) -> jax.Array:
    """k = π_old / π_behaviour from clipped log-probs, bounded as in `ratio_of`."""
    return ratio_of(clipped_logps(old_logps) - clipped_logps(behaviour_logps))


def surrogate(
    ratio: jax.Array, advantages: jax.Array, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array]:
    """(min(r Â, clip(r, 1 - clip_low, 1 + clip_high) Â), whether the clip decides), elementwise.

    The gradient is 0 where the clip decides and r Â ∇log r elsewhere, also at the edges of the clip.
    """
    clipped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    edge = jax.lax.stop_gradient(jnp.clip(ratio, 1 - clip_low, 1 + clip_high))
    return jnp.where(clipped, edge, ratio) * advantages, clipped


def sequence_mean(terms: jax.Array, mask: jax.Array) -> jax.Array:
    """mean_i 1/|y_i| Σ_t terms over all B rows, a scalar; |y_i| counts loss tokens, and an empty row contributes 0."""
    lengths = jnp.sum(mask, axis=1, dtype=terms.dtype)
    rows = jnp.sum(terms, axis=1, where=mask) / jnp.maximum(lengths, 1)
    return jnp.sum(rows) / max(terms.shape[0], 1)


def token_mean(terms: jax.Array, mask: jax.Array) -> jax.Array:
    """Σ terms / Σ_i |y_i| over the batch, a scalar; 0 without loss tokens."""
    return jnp.sum(terms, where=mask) / jnp.maximum(jnp.sum(mask, dtype=terms.dtype), 1)


MEANS = {"seq_mean": sequence_mean, "token_mean": token_mean}


def mean_by(
    name: str, aggregate: str, terms: jax.Array, mask: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """The mean that `aggregate` names, or Σ weights · terms. Raises ValueError with the objective `name` for an unknown
    aggregate."""
    if aggregate not in MEANS:
        raise ValueError(f"{name}: aggregate is {aggregate!r}; expected one of {', '.join(MEANS)}")
    return weighted(MEANS[aggregate], terms, mask, weights)


def weighted(mean: Callable[..., jax.Array], terms: jax.Array, mask: jax.Array, weights: jax.Array | None) -> jax.Array:
    """`mean(terms, mask)`; with `cleaned_weights` [B, T] Σ weights · terms in its place, a scalar.

    Weights are for rows that hold several answers, or a part of a batch: those of the mean over the whole batch make
    the sums of its parts add up to it (`rl.answers.token_weights`).
    """
    return mean(terms, mask) if weights is None else jnp.sum(weights * terms, where=mask)
