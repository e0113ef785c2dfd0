"""Rewards of the user's own: `module:name` of a function `score(task, answer) -> float`, or of a `Reward`."""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ling_jax.align.judges.cases import last_turn
from ling_jax.envs import Task
from ling_jax.messages import error_text, one_line, shown
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Reward, Rewards, of_each_group
from ling_jax.user_code import load_object

EXPECTED = "a function score(task, answer) -> float, or a ling_jax.rl.reward.Reward"


def own_reward(name: str) -> Reward:
    """The reward that `module:name` names. Raises ValueError, naming what was found, on what cannot be one.

    `score(task, answer)` gets a `ling_jax.envs.Task` (`task.prompt`, `task.hidden["answer"]`) and the text of the
    policy's last turn, its reasoning included. Its value is from 0 to 1, or from its attribute `low` to `high`. Where
    it raises, that answer has no reward and the run goes on; a value that is no number or out of range ends the run.
    """
    found = load_object(name, "reward")
    if isinstance(found, Reward):
        _check_range(name, found.low, found.high)
        return found
    if not callable(found):
        raise ValueError(f"reward is {name!r}, {shown(found)}; expected {EXPECTED}")
    _check_arguments(name, found)
    low, high = getattr(found, "low", 0.0), getattr(found, "high", 1.0)
    _check_range(name, low, high)
    return Reward(of_each_group(functools.partial(_score_all, name, found, low, high)), low, high)


def _check_arguments(name: str, function: Callable) -> None:
    try:
        inspect.signature(function).bind("task", "answer")
    except TypeError:
        found = f"a function of {inspect.signature(function)}"
        raise ValueError(f"reward is {name!r}, {found}; expected {EXPECTED}") from None
    except ValueError:  # a built-in that does not say
        return


def _check_range(name: str, low: Any, high: Any) -> None:
    numeric = all(isinstance(bound, numbers.Real) and math.isfinite(bound) for bound in (low, high))
    if not numeric or low >= high:
        raise ValueError(f"reward is {name!r}, whose range is {low!r} to {high!r}; expected low below high")


def _score_all(
    name: str, score: Callable[[Task, str], Any], low: float, high: float, episodes: Sequence[Episode], reader: Reader
) -> Rewards:
    """The rewards of a group. Raises ValueError, naming the task, on a value that is no number from low to high."""
    totals, errors = np.full(len(episodes), np.nan), [""] * len(episodes)
    for i, episode in enumerate(episodes):
        try:
            value = score(episode.task, last_turn(episode, reader))
        except (Exception, SystemExit) as error:  # the user's own
            errors[i] = f"reward {name} raised {error_text(error)}"
            continue
        if not isinstance(value, (numbers.Real, np.bool_)) or not low <= value <= high:
            raise ValueError(
                f"reward {name!r} is {shown(value)} for an answer to {one_line(episode.task.prompt)!r}; expected a "
                f"finite number from {low} to {high}: mend the function, or set its attributes low and high"
            )
        totals[i] = value
    return Rewards(totals, {}, errors)
