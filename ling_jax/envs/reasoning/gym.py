"""The procedural data sets of reasoning-gym, `reasoning_gym:leg_counting`; needs `pip install 'ling-jax[gym]'`.

An answer is right where the data set's own scorer gives it all points. Scorers that run an answer as code are not used:
their data sets are refused. A scorer runs in this process, and takes whatever time it takes.
"""

import functools
import inspect
import random
import re
from typing import Any, NamedTuple

from ling_jax.envs.base import Action, StepResult, Task, draw_task
from ling_jax.envs.own import OwnEnvironment
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.answers import ANSWER
from ling_jax.envs.reasoning.single_turn import State
from ling_jax.envs.reasoning.single_turn import reset as reset
from ling_jax.messages import error_text, nearest

NAME = "reasoning_gym"
FORM = f"\nEnd with {ANSWER} and the answer alone."
MAX_TOKENS = 4096  # our choice: rollout.max_tokens sets less
MAX_ANSWER = 4000  # characters that a scorer reads; our choice
SEEDS = 1 << 31
RUNS_CODE = re.compile(r"(?<!literal_)\b(?:eval|exec|parse_expr|sympify)\(")


class Dataset(NamedTuple):
    name: str
    made_by: type
    settings: type
    curriculum: type | None  # whose levels are the difficulties


def gym_environment(name: str) -> OwnEnvironment:
    """The environment `reasoning_gym:DATASET`; its difficulties are the levels of the data set's curriculum.

    Raises ValueError where the package or the data set is missing, and for one whose scorer runs answers as code.
    """
    dataset = _dataset(name)

    def make_task(seed: int, difficulty: int) -> Task:
        return draw_task(name, seed, difficulty, difficulties, functools.partial(_draw, dataset))

    def step(state: State, action: Action) -> tuple[State, StepResult]:
        return _step(dataset, state, action)

    difficulties = range(1, 1 + _levels(dataset))
    return OwnEnvironment(name, difficulties, make_task, lambda: PureSession(reset, step), solution)


def solution(task: Task) -> tuple[str]:
    """The data set's answer."""
    return (f"{ANSWER} {task.hidden['answer']}",)


@functools.cache
def _dataset(name: str) -> Dataset:
    wanted = name.partition(":")[2]
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise ValueError(
            f"environment is {name!r} and {error_text(error)}; install it: pip install 'ling-jax[gym]'"
        ) from None
    known = sorted(factory.DATASETS)
    if wanted not in known:
        raise ValueError(f"environment is {name!r}{nearest(wanted, known)}; expected {NAME}: and one of {known}")
    made_by, settings = factory.DATASETS[wanted]
    if RUNS_CODE.search(inspect.getsource(inspect.getmodule(made_by))):
        raise ValueError(f"environment is {name!r}, which evaluates text as Python, perhaps a policy's: choose another")
    return Dataset(wanted, made_by, settings, factory.CURRICULA.get(wanted))


def _levels(dataset: Dataset) -> int:
    attributes = dataset.curriculum().attributes.values() if dataset.curriculum else ()
    return max((len(attribute.levels) for attribute in attributes), default=1)


@functools.lru_cache(256)
def _entry(dataset: Dataset, difficulty: int, seed: int) -> tuple[Any, dict[str, Any]]:
    """(the data set, its only entry) of a seed."""
    fields = {"seed": seed, "size": 1}
    if dataset.curriculum is None:
        settings = dataset.settings(**fields)
    else:
        curriculum = dataset.curriculum()
        for name, attribute in curriculum.attributes.items():
            curriculum.set_attr_level(name, min(difficulty, len(attribute.levels)) - 1)
        settings = curriculum.generate_configuration(fields)
    made = dataset.made_by(config=settings)
    return made, made[0]


def _draw(dataset: Dataset, rng: random.Random, difficulty: int) -> dict[str, Any]:
    seed = rng.randrange(SEEDS)
    try:
        _, entry = _entry(dataset, difficulty, seed)
    except Exception as error:  # not ours
        raise ValueError(f"{NAME}:{dataset.name}: difficulty {difficulty}: {error_text(error)}") from None
    if not isinstance(entry["answer"], str) or ANSWER in entry["answer"]:
        raise ValueError(f"{NAME}:{dataset.name}: an answer is {entry['answer']!r}; expected text without {ANSWER}")
    return {
        "messages": [{"role": "user", "content": entry["question"].rstrip() + FORM}],
        "hidden": {"answer": entry["answer"], "seed": seed},
        "max_tokens": MAX_TOKENS,
        "max_turns": 1,
    }


def _step(dataset: Dataset, state: State, action: Action) -> tuple[State, StepResult]:
    """Outcome 1 where the scorer gives what follows the last `A:` all points; "score" is what it gives."""
    task = state.task
    if state.ended:
        raise ValueError(f"task {task.id}: the episode has ended; reset it")
    _, found, answer = action.raw.rpartition(ANSWER)
    error, score = None, 0.0
    if not found:
        error = f"no answer: expected {ANSWER} and the answer at the end"
    elif len(answer) > MAX_ANSWER:
        error = f"the answer has {len(answer)} characters; expected {MAX_ANSWER} at most"
    else:
        made, entry = _entry(dataset, task.difficulty, task.hidden["seed"])
        try:
            score = float(made.score_answer(answer.strip(), entry))
        except Exception as raised:  # not ours, on text that can be anything
            error = f"the scorer raised {error_text(raised)}"
    rewards = {"outcome": float(score == 1.0), "score": score}
    return State(task, True), StepResult((), rewards, True, False, error)
