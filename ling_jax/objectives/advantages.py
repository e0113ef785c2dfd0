"""Advantages of a group of answers to one prompt."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.objectives.segments import dense_ids

MIN_STD = 1e-6  # our choice: smaller differences are round-off of the verifier


def group_advantages(
    rewards: ArrayLike, valid: ArrayLike | None = None, *, groups: ArrayLike | None = None
) -> jax.Array:
    """Â_i = (R_i - mean_j R_j) / std_j R_j over the group of row i, with the population std and no epsilon.

    Args:
      rewards: [P, G], one row for each prompt, or [B] together with `groups`. Valid rewards must be finite.
      valid: same shape, true where environment and verifier gave a reward; None: everywhere. Other rows do not enter
        the group's statistics, get 0, and may hold NaN.
      groups: [B] integers, equal inside a group, in any order.

    Returns advantages in the shape of `rewards`, in at least float32; use `.reshape(-1)` for losses, which take [B].
    A group with std under 1e-6 or with at most one valid row has 0. Raises ValueError if shapes disagree. Source: GRPO
    (Shao et al. 2024, §4.1.2); no epsilon is our choice.
    """
    rewards = jnp.asarray(rewards)
    ids = _group_ids(rewards, groups)
    valid = jnp.ones(rewards.shape, bool) if valid is None else jnp.asarray(valid) != 0
    if valid.shape != rewards.shape:
        raise ValueError(f"valid has shape {valid.shape}; expected that of rewards, {rewards.shape}")
    values = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32)).reshape(-1)
    return _normalised(values, valid.reshape(-1), ids).reshape(rewards.shape)


def _group_ids(rewards, groups):
    """The group number of every reward, flat, in [0, size)."""
    if rewards.ndim == 2 and groups is None:
        return jnp.repeat(jnp.arange(rewards.shape[0]), rewards.shape[1])
    if rewards.ndim != 1 or groups is None or jnp.shape(groups) != rewards.shape:
        found = "no groups" if groups is None else f"groups {jnp.shape(groups)}"
        raise ValueError(
            f"rewards has shape {rewards.shape} with {found}; give rewards [P, G], or rewards [B] and groups [B]"
        )
    return dense_ids(jnp.asarray(groups))


def _normalised(values, valid, ids):
    count = jnp.maximum(jax.ops.segment_sum(valid.astype(values.dtype), ids, values.size), 1)
    # Relative to the minimum of the group, so that equal rewards of any size differ from their mean by exactly 0.
    minimum = jax.ops.segment_min(jnp.where(valid, values, jnp.inf), ids, values.size)
    above = jnp.where(valid, values - minimum[ids], 0)
    mean = jax.ops.segment_sum(above, ids, values.size) / count
    centred = jnp.where(valid, above - mean[ids], 0)
    std = jnp.sqrt(jax.ops.segment_sum(jnp.square(centred), ids, values.size) / count)[ids]
    differ = std >= MIN_STD
    return jnp.where(differ, centred / jnp.where(differ, std, 1), 0)
