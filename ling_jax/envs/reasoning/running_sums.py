"""Sums of two-digit numbers, added up one after the other: `?37+85+12=` -> `37+85=122;122+12=134;A:134`."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.answers import ANSWER
from ling_jax.envs.reasoning.single_turn import reset as reset
from ling_jax.envs.reasoning.single_turn import session as session
from ling_jax.envs.reasoning.single_turn import step as step

NAME = "running_sums"
DIFFICULTIES = range(1, 16)  # additions; our choice: to sums of three and four digits
TOKENS_PER_STEP = 48  # our choice: a step has up to 13 characters, and is often written again


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` additions."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def solution(task: Task, *, redundancy: float = 0.0, most: int | None = None, seed: int = 0) -> tuple[str]:
    """The worked solution. After each step a check, `c37+85=122;`, is written again and again with `redundancy`.

    There are at most `most` checks of a step; without a limit redundancy / (1 - redundancy) of them in the mean. Raises
    ValueError unless 0 <= redundancy < 1.
    """
    extra = planter(redundancy, most, random.Random(f"{task.id}/{seed}"))
    return (worked_sum(task.hidden["numbers"], extra),)


def planter(redundancy: float, most: int | None, rng: random.Random) -> Callable[[], int]:
    """How often something superfluous is done, drawn anew at each call: `most` times at most."""
    if not 0 <= redundancy < 1:
        raise ValueError(f"redundancy is {redundancy}; expected a probability from 0 to below 1")

    def draw() -> int:
        count = 0
        while count != most and rng.random() < redundancy:
            count += 1
        return count

    return draw


def worked_sum(numbers: Sequence[int], checks: Callable[[], int] = lambda: 0) -> str:
    """Steps, each with `checks()` checks, and the answer."""
    total, *numbers = numbers
    text = ""
    for number in numbers:
        written = f"{total}+{number}={total + number};"
        text += written + f"c{written}" * checks()
        total += number
    return f"{text}{ANSWER}{total}"


def sum_task(numbers: Sequence[int], tokens_per_step: int) -> dict[str, Any]:
    """Fields of a task that asks for the sum of these numbers."""
    return {
        "messages": [{"role": "user", "content": f"?{'+'.join(map(str, numbers))}="}],
        "hidden": {"numbers": numbers, "answer": str(sum(numbers))},
        "max_tokens": tokens_per_step * (len(numbers) - 1),
        "max_turns": 1,
    }


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    return sum_task([rng.randrange(10, 100) for _ in range(difficulty + 1)], TOKENS_PER_STEP)
