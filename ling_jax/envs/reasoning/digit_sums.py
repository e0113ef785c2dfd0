"""Running sums of single digits: `?3+8+2+9=` -> `3+8=11;11+2=13;13+9=22;A:22`. What a small model learns in minutes."""

import random
from typing import Any

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.running_sums import solution as solution
from ling_jax.envs.reasoning.running_sums import sum_task
from ling_jax.envs.reasoning.single_turn import reset as reset
from ling_jax.envs.reasoning.single_turn import session as session
from ling_jax.envs.reasoning.single_turn import step as step

NAME = "digit_sums"
DIFFICULTIES = range(2, 21)  # additions; our choice: one alone has 81 prompts
TOKENS_PER_STEP = 32  # our choice: a step has up to 10 characters, and is often written again


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` additions of digits from 1 to 9."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    return sum_task([rng.randrange(1, 10) for _ in range(difficulty + 1)], TOKENS_PER_STEP)
