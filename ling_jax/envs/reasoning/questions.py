"""Questions with one right answer, from JSON lines: one's own, and GSM8K's.

    {"prompt": text, "answer": text or number}
    {"messages": […], "answer": text or number}       also "tools", as in fine-tuning data
    {"question": text, "answer": solution that ends in #### and the answer}

Each may name its "checker" (`ling_jax.envs.reasoning.checkers`), which decides what is right. Prompts are asked as they
are; GSM8K's questions, whose answers are solutions, get a line that says how to end. The tasks are the file's, so
nothing is drawn from a seed.
"""

import dataclasses
import functools
import json
from typing import Any, NamedTuple

from ling_jax.chat.records import normalise_prompt
from ling_jax.data.json_lines import check_whole_characters, field, read_objects
from ling_jax.envs import base
from ling_jax.envs.base import Action, InfraError, Message, StepResult, Task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.checkers import checker
from ling_jax.envs.reasoning.single_turn import State
from ling_jax.envs.reasoning.single_turn import reset as reset
from ling_jax.messages import shown

NAME = "questions"
DIFFICULTIES = range(1, 2)  # a file does not say how hard its questions are
FORM = "\nEnd with #### and the answer."  # of GSM8K's questions
MAX_TOKENS = 4096  # our choice: rollout.max_tokens sets less
PROMPTS = ("prompt", "messages", "question")
USED = (*PROMPTS, "answer", "checker", "tools")  # fields of a record; others are kept for rewards of one's own


class Questions(NamedTuple):
    """The tasks of a file, in its order; one question in eight is held out, by its text (`is_held_out`)."""

    training: tuple[Task, ...]
    held_out: tuple[Task, ...]


def make_task(seed: int, difficulty: int) -> Task:
    """Raises ValueError: the tasks are a file's, which `read_questions` reads."""
    raise ValueError(f"{NAME}: task {seed} of difficulty {difficulty} comes from a file; name it in tasks[0].path")


@functools.cache
def read_questions(path: str) -> Questions:
    """All tasks of a file, checked. Raises ValueError naming file, line and field, or OSError.

    A file is read once: a run keeps its tasks whatever becomes of it. `read_questions.cache_clear()` forgets them. A
    task's seed is its line.
    """
    tasks, lines = [], {}
    for where, record in read_objects(path, 'an object with "prompt" and "answer"'):
        task = _task(where, record)
        asked = json.dumps([_asked_plainly(task), task.tools], sort_keys=True)
        if (earlier := lines.setdefault(asked, task.seed)) != task.seed:
            raise ValueError(f"{where}: its prompt is that of line {earlier}; leave one of the two out")
        tasks.append(task)
    if not tasks:
        raise ValueError(f'{path} holds no question; expected JSON lines {{"prompt", "answer"}}')
    held_out = [task for task in tasks if is_held_out(task)]
    return Questions(tuple(task for task in tasks if not is_held_out(task)), tuple(held_out))


def is_held_out(task: Task) -> bool:
    """The side of the split that a question is on, however it is spaced and in whichever form a record asks it."""
    return base.is_held_out(dataclasses.replace(task, messages=_asked_plainly(task)))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Outcome 1 where the checker calls the answer right. Raises InfraError where the machine kept it from a verdict.

    An answer on which the checker uses up its processor time is wrong: to hide must pay no better than to be wrong.
    """
    if state.ended:
        raise ValueError(f"task {state.task.id}: the episode has ended; reset it")
    hidden = state.task.hidden
    checked = checker(hidden["checker"]).check(action, hidden["answer"])
    if checked.reward is None:
        raise InfraError(f"the answer was not checked: {checked.detail}")
    return State(state.task, True), StepResult((), {"outcome": checked.reward}, True, False, checked.detail or None)


def session() -> PureSession:
    """An episode of one turn. The checker runs at once: `CHECK_SECONDS` at most, and for numbers milliseconds."""
    return PureSession(reset, step)


def solution(task: Task) -> tuple[str]:
    """The file's own."""
    return (task.hidden["solution"],)


def _asked_plainly(task: Task) -> list[Message]:
    """The messages with one blank in the place of several, and without `FORM`."""
    return [message | {"content": _plain(message.get("content", ""))} for message in task.messages]


def _plain(text: str) -> str:
    return " ".join(" ".join(text.split()).removesuffix(FORM.strip()).split())


def _task(where: str, record: dict[str, Any]) -> Task:
    messages, tools = _asked(where, record)
    name = record.get("checker", "answer")
    answer = None if name == "none" else _answer(record, where)
    try:
        found = checker(name)
        gold = found.gold(answer)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    worked = found.solution(answer, gold)
    check_whole_characters(worked, f"{where}: answer")
    others = {key: value for key, value in record.items() if key not in USED}
    return Task(
        environment=NAME,
        difficulty=DIFFICULTIES[0],
        seed=int(where.rpartition(" ")[2]),
        messages=messages,
        hidden={"answer": gold, "checker": name, "solution": worked} | ({"fields": others} if others else {}),
        max_tokens=MAX_TOKENS,
        max_turns=1,
        tools=tools,
    )


def _answer(record: dict[str, Any], where: str) -> Any:
    try:
        return field(record, "answer", where)
    except ValueError as error:
        raise ValueError(
            f'{error}; give the right answer, or "checker": "none" where a reward of your own looks at no answer'
        ) from None


def _asked(where: str, record: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(messages, tools) of a record."""
    given = [name for name in PROMPTS if name in record]
    if not given:
        field(record, "prompt", where)
    if len(given) > 1:
        raise ValueError(f"{where} has {' and '.join(given)}; expected one of {', '.join(PROMPTS)}")
    if "messages" not in given:
        (name,) = given
        text = record[name]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: {name} is {shown(text)}; expected text")
        check_whole_characters(text, f"{where}: {name}")
        record = record | {"prompt": text.strip() + FORM if name == "question" else text}
        record.pop("question", None)
    record = normalise_prompt(record, where)
    messages = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
    if messages[-1]["role"] == "assistant":
        raise ValueError(f"{where}: messages end with the assistant's; expected a user's last, which is to be answered")
    return messages, record.get("tools") or []
