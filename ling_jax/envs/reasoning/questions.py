"""Questions with one final answer, from JSON lines {"question", "answer"}: GSM8K, and one's own data in its form.

Solved is what `rewards.AnswerChecker` calls right. The tasks are the file's, so nothing is drawn from a seed.
"""

import functools
from typing import Any, NamedTuple

from ling_jax.data.json_lines import check_whole_characters, field, read_objects
from ling_jax.envs.base import Action, InfraError, StepResult, Task, is_held_out
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.single_turn import State
from ling_jax.envs.reasoning.single_turn import reset as reset
from ling_jax.rewards import gold_answer, shared_checker

NAME = "questions"
DIFFICULTIES = range(1, 2)  # a file does not say how hard its questions are
FORM = "\nEnd with #### and the answer."
MAX_TOKENS = 4096  # our choice: rollout.max_tokens sets less


class Questions(NamedTuple):
    """The tasks of a file, in its order; one question in eight is held out, by its text (`envs.is_held_out`)."""

    training: tuple[Task, ...]
    held_out: tuple[Task, ...]


def make_task(seed: int, difficulty: int) -> Task:
    """Raises ValueError: the tasks are a file's, which `read_questions` reads."""
    raise ValueError(f"{NAME}: task {seed} of difficulty {difficulty} comes from a file; name it in tasks[0].path")


@functools.cache
def read_questions(path: str) -> Questions:
    """All tasks of a file, checked. Raises ValueError naming file, line and field, or OSError.

    A file is read once: a run keeps its tasks whatever becomes of it. `read_questions.cache_clear()` forgets them.
    """
    tasks = [_task(where, record, line) for line, (where, record) in enumerate(read_objects(path), start=1)]
    if not tasks:
        raise ValueError(f'{path} holds no question; expected JSON lines {{"question", "answer"}}')
    held_out = [task for task in tasks if is_held_out(task)]
    return Questions(tuple(task for task in tasks if not is_held_out(task)), tuple(held_out))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Outcome 1 where the checker calls the answer right. Raises InfraError where the machine kept it from a verdict.

    An answer on which the checker uses up its processor time is wrong: to hide must pay no better than to be wrong.
    """
    if state.ended:
        raise ValueError(f"task {state.task.id}: the episode has ended; reset it")
    checked = shared_checker().check(action.raw, state.task.hidden["answer"])
    if checked.reward is None:
        raise InfraError(f"the answer was not checked: {checked.detail}")
    return State(state.task, True), StepResult((), {"outcome": checked.reward}, True, False, checked.detail or None)


def session() -> PureSession:
    """An episode of one turn. The checker takes milliseconds, so it runs at once."""
    return PureSession(reset, step)


def solution(task: Task) -> tuple[str]:
    """The file's own."""
    return (task.hidden["solution"],)


def _task(where: str, record: dict[str, Any], number: int) -> Task:
    question, answer = (field(record, name, where) for name in ("question", "answer"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: question is {question!r}; expected text")
    check_whole_characters(question, f"{where}: question")
    try:
        gold = gold_answer(answer)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    worked = answer if isinstance(answer, str) and "####" in answer else f"\\boxed{{{gold}}}"
    check_whole_characters(worked, f"{where}: answer")
    return Task(
        environment=NAME,
        difficulty=DIFFICULTIES[0],
        seed=number,
        messages=[{"role": "user", "content": question.strip() + FORM}],
        hidden={"answer": gold, "solution": worked},
        max_tokens=MAX_TOKENS,
        max_turns=1,
    )
