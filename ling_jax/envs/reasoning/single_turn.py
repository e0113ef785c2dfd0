"""Episodes of one turn that ends in `A:` and an answer."""

from collections.abc import Callable
from typing import NamedTuple

from ling_jax.envs.base import Action, StepResult, Task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.answers import ANSWER, is_text


class State(NamedTuple):
    task: Task
    ended: bool = False


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: nothing is random here."""
    del seed
    return State(task)


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Outcome 1 where all that follows the last `A:` is the task's answer, blanks around it aside."""
    return judged(state, action, is_solved)


def judged(state: State, action: Action, solved: Callable[[str, Task], bool]) -> tuple[State, StepResult]:
    """The end of the episode, with outcome 1 where the turn's text is `solved`."""
    if state.ended:
        raise ValueError(f"task {state.task.id}: the episode has ended; reset it")
    error = None if ANSWER in action.raw else f"no answer: expected {ANSWER} and the answer at the end"
    rewards = {"outcome": float(solved(action.raw, state.task))}
    return State(state.task, True), StepResult((), rewards, True, False, error)


def session() -> PureSession:
    """An episode of one turn."""
    return PureSession(reset, step)


def is_solved(text: str, task: Task) -> bool:
    """Whether all that follows the last `A:` is the task's answer, blanks around it aside."""
    return is_text(text, task.hidden["answer"])
