"""Agentic RL: solved, along the calls that were needed, without text that repeats itself (Ling 2.6 report §3.1.2)."""

from collections.abc import Sequence

import numpy as np

from ling_jax.align.judges.cases import answer_of
from ling_jax.chat.tool_calls import parse_either
from ling_jax.envs.tools.call import Call
from ling_jax.rewards import process_reward, repetition_reward, shape
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Rewards

PERFECT_PROCESS = 4.0  # of `rewards.process_reward`, with or without calls
PROCESS_WEIGHT = 0.125  # our choice: the worst process without superfluous calls costs 7/8, less than the outcome
MAX_EXTRA = 64  # calls: our choice, so that the reward is bounded whatever a policy writes


def agentic(episodes: Sequence[Episode], reader: Reader) -> Rewards:
    """The outcome, shaped by 0.125 · (`rewards.process_reward` - 4) + `rewards.repetition_reward`.

    The process is compared with the task's calls, `hidden["calls"]`; a task without any needs none. A perfect process
    costs nothing. Superfluous calls cost more each, up to 64 of them.
    """
    outcome = np.array([episode.outcome for episode in episodes])
    process = PROCESS_WEIGHT * (np.array([_process(episode) for episode in episodes]) - PERFECT_PROCESS)
    repetition = np.array([repetition_reward(answer_of(episode, reader).text) for episode in episodes])
    extra = np.array([episode.rewards.get("superfluous_calls", 0.0) for episode in episodes])
    parts = {"outcome": outcome, "process": process, "repetition": repetition, "superfluous_calls": extra}
    return Rewards(shape(outcome, process + repetition), parts)


def expected_calls(episode: Episode) -> list[Call]:
    """The calls that solve the task."""
    return list(episode.task.hidden.get("calls", ()))


def _process(episode: Episode) -> float:
    expected = expected_calls(episode)
    readable = not any(parse_either(turn, episode.task.tools).errors for turn in episode.turns)
    return process_reward(episode.calls[: len(expected) + MAX_EXTRA], expected, format_ok=readable).total
