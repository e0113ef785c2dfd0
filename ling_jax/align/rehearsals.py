"""Conversations of an environment's tasks with planted mistakes: what a policy knows before it learns by trial."""

import inspect
import random
from collections.abc import Iterator, Sequence

from ling_jax.align.records import converse, record_of
from ling_jax.chat.conversations import Record
from ling_jax.envs import HELD_OUT_SEEDS, Task, environment
from ling_jax.envs.sources import TaskSource, tasks


def rehearsals(source: TaskSource, mistakes: float) -> Iterator[Record]:
    """A conversation of each task, with `flawed_turns`; the same ones every time.

    Raises InfraError where a session fails.
    """
    for task in tasks(source):
        turns = flawed_turns(task, mistakes)
        if task.max_turns == 1:  # nothing answers: no session, which may have a sandbox
            messages = [*task.messages, *({"role": "assistant", "content": turn} for turn in turns)]
        else:
            messages, _ = converse(task, turns)
        yield record_of(task, messages)


def flawed_turns(task: Task, mistakes: float) -> Sequence[str]:
    """The turns of the task's solution, with mistakes.

    They are those of the solution's own `error_rate`, or else, with this probability, all the turns of another task of
    the same difficulty, drawn by the task's id. By chance these may be right.
    """
    env = environment(task.environment)
    assert env.solution is not None, f"{task.environment} knows no solutions"
    if "error_rate" in inspect.signature(env.solution).parameters:
        return env.solution(task, error_rate=mistakes)
    rng = random.Random(task.id)
    if rng.random() < mistakes:
        task = env.make_task(rng.randrange(HELD_OUT_SEEDS), task.difficulty)
    return env.solution(task)
