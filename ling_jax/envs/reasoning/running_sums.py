"""Sums of two-digit numbers, added up one after the other: `?37+85+12=` -> `37+85=122;122+12=134;A:134`."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.single_turn import ANSWER
from ling_jax.envs.reasoning.single_turn import reset as reset
from ling_jax.envs.reasoning.single_turn import step as step

NAME = "running_sums"
DIFFICULTIES = range(1, 16)  # additions; our choice: to sums of three and four digits
TOKENS_PER_STEP = 48  # our choice: a step has up to 13 characters, and is often written again


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` additions."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def solution(task: Task, *, redundancy: float = 0.0, most: int | None = None, seed: int = 0) -> tuple[str]:
    """The worked solution. After each step a check, `c37+85=122;`, is written again and again with `redundancy`.

    So a step has redundancy / (1 - redundancy) checks in the mean; `most` may allow fewer. Raises ValueError
    unless 0 <= redundancy < 1.
    """
    if not 0 <= redundancy < 1:
        raise ValueError(f"redundancy is {redundancy}; expected a probability from 0 to below 1")
    rng = random.Random(f"{task.id}/{seed}")

    def checks() -> int:
        count = 0
        while count != most and rng.random() < redundancy:
            count += 1
        return count

    return (worked_sum(task.hidden["numbers"], checks),)


def worked_sum(numbers: Sequence[int], checks: Callable[[], int] = lambda: 0) -> str:
    """Steps and answer; each step is checked `checks()` times."""
    total, *numbers = numbers
    text = ""
    for number in numbers:
        written = f"{total}+{number}={total + number};"
        text += written + checks() * f"c{written}"
        total += number
    return f"{text}{ANSWER}{total}"


def draw_sum(rng: random.Random, additions: int, numbers: range) -> dict[str, Any]:
    """The fields of a task that adds up so many of the numbers."""
    drawn = [rng.randrange(numbers.start, numbers.stop) for _ in range(additions + 1)]
    return {
        "messages": [{"role": "user", "content": f"?{'+'.join(map(str, drawn))}="}],
        "hidden": {"numbers": drawn, "answer": str(sum(drawn))},
        "max_tokens": TOKENS_PER_STEP * additions,
        "max_turns": 1,
    }


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    return draw_sum(rng, difficulty, range(10, 100))
