"""A batch between generation and learning: its groups, what their answers are worth, and what is learnt from them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ling_jax.objectives import group_advantages
from ling_jax.rewards import check_reward
from ling_jax.rl.answers import Answer
from ling_jax.rl.buffer import Group
from ling_jax.rl.config import RLConfig
from ling_jax.rl.episode import Episode
from ling_jax.rl.episode_answers import answers_of
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Reward, Rewards
from ling_jax.rl.unscored import drop_unscored, unscored

ROUND_OFF = 1e-6  # that a reward may pass its bounds by

_advantages = jax.jit(group_advantages)


class Harvest(NamedTuple):
    """A batch with its rewards."""

    drawn: list[Group]
    groups: list[Group]  # without the answers that have no reward, and groups that have none
    rewards: list[Rewards]  # of `groups`
    without_reward: dict[int, str]  # rollout -> why it has none
    errors: list[str]  # of all answers that were scored, "" where nothing failed
    memory: Any  # what the reward remembers from here on


def harvest_of(config: RLConfig, reward: Reward, drawn: list[Group], reader: Reader, memory: Any) -> Harvest:
    """Pays the groups. Raises ValueError on a reward that is not finite or out of its range."""
    paid, memory = reward.pay([group.paid for group in drawn], reader, memory)
    low, high = reward.low - ROUND_OFF, reward.high + ROUND_OFF
    for group, rewards in zip(drawn, paid, strict=True):
        scored = rewards.total[[not error for error in rewards.errors]] if rewards.errors else rewards.total
        check_reward(scored, low, high, f"reward {config.reward!r} of prompt {group.prompt}")
    errors = [error for rewards in paid for error in rewards.errors or [""] * len(rewards.total)]
    groups, kept = drop_unscored(drawn, paid)
    return Harvest(drawn, groups, kept, unscored(drawn, paid), errors, memory)


def answers_to_learn(
    config: RLConfig, harvest: Harvest, reader: Reader, version: int
) -> tuple[list[Answer], np.ndarray]:
    """(the answers of a harvest for weights of this version, advantages [groups, group_size])."""
    rollout = config.rollout
    advantages = advantages_of(harvest.groups, harvest.rewards, (rollout.prompts_per_step, rollout.group_size))
    teacher_of = config.teacher_of if config.teachers else None
    answers = answers_of(harvest.groups, advantages, reader, version=version, teacher_of=teacher_of)
    return answers, advantages


def advantages_of(groups: Sequence[Group], rewards: Sequence[Rewards], shape: tuple[int, int]) -> np.ndarray:
    """[groups, group_size] float32 of that shape; 0 for answers without a reward and where there is no group."""
    totals, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for row, (group, reward) in enumerate(zip(groups, rewards, strict=True)):
        valid[row] = group.valid
        totals[row, valid[row]] = reward.total
    return np.asarray(_advantages(totals, valid))


def share_without_spread(advantages: np.ndarray) -> float:
    """The share of groups [groups, group_size] whose answers are all worth the same: no gradient comes from them."""
    return float(np.mean(~advantages.any(axis=1))) if len(advantages) else 0.0


def reward_metrics(groups: Sequence[Group], rewards: Sequence[Rewards]) -> dict[str, float]:
    """Means over the answers that have a reward; 0 where there are none."""
    paid = [episode for group in groups for episode in group.paid]
    parts = dict.fromkeys(name for reward in rewards for name in reward.parts)
    metrics = {f"reward/{name}": _mean([r.parts[name] for r in rewards]) for name in parts}
    metrics |= _of_environments(paid)
    return metrics | {
        "reward": _mean([reward.total for reward in rewards]),
        "accuracy": _mean([[episode.outcome for episode in paid]]),
        "tokens_per_answer": _mean([[episode.drawn for episode in paid]]),
        "cut_off": _mean([[episode.trajectory.status == "truncated" for episode in paid]]),
        "unreadable": _mean([[bool(episode.error) for episode in paid]]),
        "answers": len(paid),
        "groups": len(groups),
    }


def _of_environments(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means of what the environments say besides the outcome, over the answers of which they say it."""
    found: dict[str, list[float]] = {}
    for episode in episodes:
        for name, reward in episode.rewards.items():
            if name != "outcome":
                found.setdefault(f"{episode.task.environment}/{name}", []).append(reward)
    return {name: _mean([values]) for name, values in found.items()}


def _mean(values: Sequence[Sequence[float]]) -> float:
    flat = np.concatenate([np.asarray(part, np.float64) for part in values]) if values else np.zeros(0)
    return float(flat.mean()) if flat.size else 0.0
