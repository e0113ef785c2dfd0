"""Answers whose judge failed: they leave the batch as broken episodes do."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ling_jax.rl.reward import Rewards
from ling_jax.rl.rollouts import Group
from ling_jax.rl.runner import Episode


def drop_unjudged(groups: Sequence[Group], rewards: Sequence[Rewards]) -> tuple[list[Group], list[Rewards]]:
    """Groups and rewards without the answers that have none; a group without any reward is left out.

    Such an answer is "failed" in the group, so that it enters neither statistics nor loss, and its reward is gone.
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
    episodes = tuple(
        _failed(episode, next(errors)) if valid else episode
        for episode, valid in zip(group.episodes, group.valid, strict=True)
    )
    rows = np.array([not error for error in reward.errors])
    parts = {name: values[rows] for name, values in reward.parts.items()}
    return group._replace(episodes=episodes), Rewards(reward.total[rows], parts)


def _failed(episode: Episode, error: str) -> Episode:
    if not error:
        return episode
    trajectory = dataclasses.replace(episode.trajectory, status="failed")
    return dataclasses.replace(episode, trajectory=trajectory, error=f"judge: {error}")
