"""Answers whose reward failed: they leave the batch as broken episodes do."""

from collections.abc import Sequence

import numpy as np

from ling_jax.rl.buffer import Group
from ling_jax.rl.reward import Rewards


def count_unscored(rewards: Sequence[Rewards]) -> int:
    """How many answers have no reward."""
    return sum(bool(error) for reward in rewards for error in reward.errors)


def drop_unscored(groups: Sequence[Group], rewards: Sequence[Rewards]) -> tuple[list[Group], list[Rewards]]:
    """Groups and rewards without the answers that have none; a group without any reward is left out.

    Such an episode ends as "infra_failed", so that it enters neither statistics nor loss, and its reward is gone.
    """
    kept = [(group, _scored(group, reward)) for group, reward in zip(groups, rewards, strict=True)]
    kept = [(group, reward) for group, reward in kept if len(reward.total)]
    return [group for group, _ in kept], [reward for _, reward in kept]


def _scored(group: Group, reward: Rewards) -> Rewards:
    """The rewards of those that have one; the episodes of the others end."""
    if not any(reward.errors):
        return reward
    for episode, error in zip(group.paid, reward.errors, strict=True):
        if error:
            episode.end("infra_failed", error)
    rows = np.array([not error for error in reward.errors])
    return Rewards(reward.total[rows], {name: values[rows] for name, values in reward.parts.items()})
