"""Answers whose reward failed: they leave the batch as broken episodes do."""

from collections.abc import Sequence

import numpy as np

from ling_jax.rl.buffer import Group
from ling_jax.rl.reward import Rewards


def unscored(groups: Sequence[Group], rewards: Sequence[Rewards]) -> dict[int, str]:
    """{rollout: why it has no reward} of those that have none."""
    pairs = [(group.paid, reward.errors) for group, reward in zip(groups, rewards, strict=True) if reward.errors]
    return {e.id: error for paid, errors in pairs for e, error in zip(paid, errors, strict=True) if error}


def drop_unscored(groups: Sequence[Group], rewards: Sequence[Rewards]) -> tuple[list[Group], list[Rewards]]:
    """Groups and rewards without the answers that have none; a group without any reward is left out.

    So such an answer enters neither statistics nor loss.
    """
    kept = [_scored(group, reward) for group, reward in zip(groups, rewards, strict=True)]
    kept = [(group, reward) for group, reward in kept if len(reward.total)]
    return [group for group, _ in kept], [reward for _, reward in kept]


def _scored(group: Group, reward: Rewards) -> tuple[Group, Rewards]:
    if not any(reward.errors):
        return group, reward
    gone = {id(episode) for episode, error in zip(group.paid, reward.errors, strict=True) if error}
    rows = np.array([not error for error in reward.errors])
    parts = {name: values[rows] for name, values in reward.parts.items()}
    episodes = tuple(None if id(episode) in gone else episode for episode in group.episodes)
    return Group(group.prompt, episodes), Rewards(reward.total[rows], parts)
