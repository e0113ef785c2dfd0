"""Agentic RL: solved, along the calls that were needed, without text that repeats itself (Ling 2.6 report §3.1.2)."""

from collections.abc import Sequence

import numpy as np

from ling_jax.align.evo_cot import written
from ling_jax.chat.tool_calls import parse_either
from ling_jax.rewards import process_reward, repetition_reward
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Rewards

PROCESS_WEIGHT = 0.25  # our choice: a perfect process, worth 4, then counts as much as the outcome
MOST_EXTRA = 64  # calls: our choice, so that the reward is bounded whatever a policy writes


def agentic(episodes: Sequence[Episode], reader: Reader) -> Rewards:
    """outcome + 0.25 · `rewards.process_reward` against the task's calls + `rewards.repetition_reward`.

    The process penalises superfluous calls, up to 64 of them. A task without calls, `hidden["calls"]`, needs none.
    """
    outcome = np.array([episode.outcome for episode in episodes])
    process = PROCESS_WEIGHT * np.array([_process(episode) for episode in episodes])
    repetition = np.array([repetition_reward(written(episode, reader)) for episode in episodes])
    extra = np.array([episode.rewards.get("superfluous_calls", 0.0) for episode in episodes])
    parts = {"outcome": outcome, "process": process, "repetition": repetition, "superfluous_calls": extra}
    return Rewards(outcome + process + repetition, parts)


def _process(episode: Episode) -> float:
    expected = list(episode.task.hidden.get("calls", ()))
    readable = not any(parse_either(turn, episode.task.tools).errors for turn in episode.turns)
    return process_reward(episode.calls[: len(expected) + MOST_EXTRA], expected, format_ok=readable).total
