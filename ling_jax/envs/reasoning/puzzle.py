"""Puzzles with one solution: clues that leave no other, and answers that are lists."""

import functools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ling_jax.envs.base import Action, StepResult, Task, draw_task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.answers import ANSWER, is_list
from ling_jax.envs.reasoning.single_turn import State, judged
from ling_jax.envs.reasoning.single_turn import reset as reset

Clue = TypeVar("Clue")
Solution = TypeVar("Solution")


def choose_clues(
    pool: Sequence[Clue],
    other: Callable[[Sequence[Clue]], Solution | None],
    holds: Callable[[Clue, Solution], bool],
) -> list[Clue]:
    """Clues of a pool, all of them true, that leave one solution.

    `other(clues)` finds a solution besides the true one, or None; `holds(clue, solution)` says whether a clue is true
    of one. Each clue is the first that excludes what was left, so there are few. Raises ValueError where all of the
    pool leaves more than one solution.
    """
    chosen: list[Clue] = []
    while (found := other(chosen)) is not None:
        clue = next((clue for clue in pool if not holds(clue, found)), None)
        if clue is None:
            raise ValueError(f"all of {len(pool)} clues leave another solution: {found}")
        chosen.append(clue)
    return chosen


def without_superfluous(clues: Sequence[Clue], other: Callable[[Sequence[Clue]], Solution | None]) -> list[Clue]:
    """The clues without those that the others make unnecessary."""
    kept = list(clues)
    for clue in clues:
        rest = [each for each in kept if each != clue]
        if other(rest) is None:
            kept = rest
    return kept


def draw_worded(
    name: str,
    seed: int,
    difficulty: int,
    difficulties: range,
    draw: Callable[[random.Random, int], Any],
    word: Callable[[random.Random, Any], dict[str, Any]],
) -> Task:
    """`draw_task` of a puzzle that is slow to draw and that many prompts can ask.

    `draw(rng, difficulty)` is called once, and `word(rng, puzzle)`, which shuffles clues and names, until the prompt is
    on the seed's side of the split.
    """

    @functools.cache
    def puzzle() -> Any:
        return draw(random.Random(f"{name}/{difficulty}/{seed}"), difficulty)

    return draw_task(name, seed, difficulty, difficulties, lambda rng, _: word(rng, puzzle()))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Outcome 1 where the list that follows the last `A:` is the task's answer, blanks and case aside."""
    return judged(state, action, is_solved)


def session() -> PureSession:
    """An episode of one turn."""
    return PureSession(reset, step)


def is_solved(text: str, task: Task) -> bool:
    """Whether the list that follows the last `A:` is the task's answer, blanks and case aside."""
    return is_list(text, task.hidden["answer"])


def puzzle_task(prompt: str, answer: str, worked: Iterable[str], max_tokens: int) -> dict[str, Any]:
    """Fields of a task; `worked` are the lines that lead to the answer."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "hidden": {"answer": answer, "worked": [*worked]},
        "max_tokens": max_tokens,
        "max_turns": 1,
    }


def solution(task: Task) -> tuple[str]:
    """The worked solution, then the answer."""
    return ("\n".join([*task.hidden["worked"], f"{ANSWER}{task.hidden['answer']}"]),)


def shuffled(rng: random.Random, items: Iterable[Any]) -> list[Any]:
    """The items in random order."""
    return rng.sample(found := list(items), len(found))
