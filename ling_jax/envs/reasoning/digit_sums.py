"""Sums of digits, added up one after the other: `?7+8+5=` -> `7+8=15;15+5=20;A:20`.

As `running_sums`, with so few different steps that a model of a million parameters learns them in a minute.
"""

import random
from typing import Any

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.running_sums import draw_sum
from ling_jax.envs.reasoning.running_sums import solution as solution
from ling_jax.envs.reasoning.single_turn import reset as reset
from ling_jax.envs.reasoning.single_turn import step as step

NAME = "digit_sums"
DIFFICULTIES = range(2, 16)  # additions; with one there are only 81 tasks


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` additions."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    return draw_sum(rng, difficulty, range(1, 10))
