"""Answers whose judge failed: they leave the batch as broken episodes do."""

from collections.abc import Sequence

import numpy as np

from ling_jax.rl.buffer import Group
from ling_jax.rl.reward import Rewards


def drop_unjudged(groups: Sequence[Group], rewards: Sequence[Rewards]) -> tuple[list[Group], list[Rewards]]:
    """Groups and rewards without the answers that have none; a group without any reward is left out.

    Such an answer is None in the group, so that it enters neither statistics nor loss, and its reward is gone.
    """
    kept = [_without_unjudged(group, reward) for group, reward in zip(groups, rewards, strict=True)]
    kept = [(group, reward) for group, reward in kept if any(group.valid)]
    return [group for group, _ in kept], [reward for _, reward in kept]


def count_unjudged(rewards: Sequence[Rewards]) -> int:
    return sum(bool(error) for reward in rewards for error in reward.errors)


def _without_unjudged(group: Group, reward: Rewards) -> tuple[Group, Rewards]:
    if not any(reward.errors):
        return group, reward
    errors = iter(reward.errors)
    judged = [valid and not next(errors) for valid in group.valid]
    episodes = tuple(episode if kept else None for episode, kept in zip(group.episodes, judged, strict=True))
    rows = np.array([not error for error in reward.errors])
    parts = {name: values[rows] for name, values in reward.parts.items()}
    return group._replace(episodes=episodes), Rewards(reward.total[rows], parts)
