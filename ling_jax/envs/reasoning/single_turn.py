"""Episodes of one turn that ends in `A:` and an answer."""

from typing import NamedTuple

from ling_jax.envs.base import StepResult, Task

ANSWER = "A:"


class State(NamedTuple):
    task: Task
    ended: bool = False


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: nothing is random here."""
    del seed
    return State(task)


def step(state: State, action: str) -> StepResult:
    """Outcome 1 where all that follows the last `A:` is the task's answer, blanks around it aside."""
    if state.ended:
        raise ValueError(f"task {state.task.id}: the episode has ended; reset it")
    _, found, answer = action.rpartition(ANSWER)
    solved = bool(found) and answer.strip() == state.task.hidden["answer"]
    error = None if found else f"no answer: expected {ANSWER} and the answer at the end"
    return StepResult((), {"outcome": float(solved)}, True, False, error, State(state.task, True))
