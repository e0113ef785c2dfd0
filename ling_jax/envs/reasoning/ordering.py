"""Letters in a row, known by their neighbours: `?C>B;A<B;C<D=` -> `A<B;B<C;C<D;A:ABCD`."""

import itertools
import random
import string
from typing import Any

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.answers import ANSWER
from ling_jax.envs.reasoning.single_turn import reset as reset
from ling_jax.envs.reasoning.single_turn import session as session
from ling_jax.envs.reasoning.single_turn import step as step

NAME = "ordering"
DIFFICULTIES = range(2, 26)  # comparisons; one alone is its own answer, and the alphabet has 26 letters
TOKENS_PER_STEP = 24  # our choice: a step has 4 characters and a letter of the answer


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` comparisons of neighbours, shuffled and written either way round, which fix one order."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def solution(task: Task) -> tuple[str]:
    """The comparisons from the smallest letter on, then the order."""
    order = task.hidden["answer"]
    steps = "".join(f"{small}<{large};" for small, large in itertools.pairwise(order))
    return (f"{steps}{ANSWER}{order}",)


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    order = rng.sample(string.ascii_uppercase, difficulty + 1)
    clues = [rng.choice([f"{a}<{b}", f"{b}>{a}"]) for a, b in itertools.pairwise(order)]
    rng.shuffle(clues)
    return {
        "messages": [{"role": "user", "content": f"?{';'.join(clues)}="}],
        "hidden": {"answer": "".join(order)},
        "max_tokens": TOKENS_PER_STEP * difficulty,
        "max_turns": 1,
    }
