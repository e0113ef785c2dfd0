"""The focal bidirectional reward: judged rubrics, with weight moved away from saturated rubrics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.rewards.bounds import check_reward


class FocalReward(NamedTuple):
    """Arrays in at least float32."""

    rewards: jax.Array  # [N]
    focus: jax.Array  # [K] weight of each rubric; they sum to 1
    pace: jax.Array  # [K] saturation of each rubric, 0 to 1; `last_pace` of the next step


def focal_reward(
    merits: ArrayLike,
    defects: ArrayLike,
    weights: ArrayLike,
    *,
    last_pace: ArrayLike | None = None,
    temperature: float = 1.0,
    gamma: float = 3.0,
    eps: float = 0.05,
    decay: float = 0.9,
) -> FocalReward:
    """Rewards of N answers judged by K rubrics (Ling 2.6 report §3.1.3; the formulas and defaults are our choice).

        z = merits - defects,   s = softmax over answers of (z · w) / temperature,   Σ w = 1
        pace_k = clip(Σ_i s_i (z_ik + 1) / 2, 0, 1),   after the first step decay · last_pace + (1 - decay) · pace
        f_k ∝ w_k (1 - pace_k + eps)^gamma,   Σ f = 1,   rewards = z · f

    `merits` and `defects` [N, K] in [0, 1], `weights` [K] > 0, `last_pace` [K] or None. Rewards are in [-1, 1] and at
    least float32. f has no gradient, so an answer gains nothing by saturating a rubric. Raises ValueError on shapes
    that do not fit and, outside of jit, on scores or weights that are not finite or out of range.
    """
    merits, defects, weights = map(jnp.asarray, (merits, defects, weights))
    _check(merits, defects, weights, last_pace)
    dtype = jnp.result_type(merits, defects, weights, jnp.float32)
    signal_NK = merits.astype(dtype) - defects.astype(dtype)
    base_K = weights.astype(dtype) / jnp.sum(weights.astype(dtype))
    share_N = jax.nn.softmax(signal_NK @ base_K / temperature)
    pace_K = jnp.clip(share_N @ ((signal_NK + 1) / 2), 0, 1)
    if last_pace is not None:
        pace_K = decay * jnp.asarray(last_pace, dtype) + (1 - decay) * pace_K
    raw_K = base_K * (1 - pace_K + eps) ** gamma
    focus_K = jax.lax.stop_gradient(raw_K / jnp.sum(raw_K))
    return FocalReward(signal_NK @ focus_K, focus_K, jax.lax.stop_gradient(pace_K))


def _check(merits, defects, weights, last_pace) -> None:
    shape = merits.shape
    if len(shape) != 2 or defects.shape != shape or weights.shape != shape[1:]:
        raise ValueError(
            f"merits are {shape}, defects {defects.shape}, weights {weights.shape}; expected [N, K], [N, K], [K]"
        )
    if last_pace is not None and jnp.shape(last_pace) != shape[1:]:
        raise ValueError(f"last_pace is {jnp.shape(last_pace)}; expected {shape[1:]}, one entry per rubric")
    above_zero = float(jnp.finfo(jnp.float32).tiny)
    ranges = {"merits": (merits, 0, 1), "defects": (defects, 0, 1), "weights": (weights, above_zero, float("inf"))}
    if last_pace is not None:
        ranges["last_pace"] = (last_pace, 0, 1)
    for name, (value, low, high) in ranges.items():
        if not isinstance(value, jax.core.Tracer):
            check_reward(value, low, high, name)
