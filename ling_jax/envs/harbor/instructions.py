"""What an exported task says: the messages of its environment, how it is played with a shell, and what is short."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ling_jax.envs.base import Task
from ling_jax.envs.reasoning import answers, grid, knights, ordering, scheduling
from ling_jax.envs.search.quests import NOTES

SUMS = "`?3+8+2=` asks for the sum, `A:13`."
NOTATION = {  # environment -> (last difficulty whose prompts are a few characters, what they mean)
    "running_sums": (99, SUMS),
    "digit_sums": (99, SUMS),
    "ordering": (
        ordering.DIFFICULTIES[-1],
        "`?C>B;A<B=` asks for the order of the letters, the smallest first: A<B says that A comes somewhere before B. "
        "The answer is `A:ABC`.",
    ),
    "knights": (
        knights.SHORT,
        "Each of the people a, b, … is a knight, who always tells the truth, or a knave, who always lies. `a:` stands "
        "before what a says: `b+` b is a knight, `b-` b is a knave, `b=c` both are of one kind, `b#c` they are of two "
        "kinds, `b|c` at least one is a knight, `b&c` both are knights, `2+` exactly two of all people are knights. "
        "Who is what? The answer names all in alphabetical order, + for a knight, such as `A:a+,b-`.",
    ),
    "grid": (
        grid.SHORT,
        "There is a row of houses, as many as there are letters in a group. Each house has one letter of each group, "
        "and each letter is in one house. `a=p` says in one house, `a!p` not in one house, `a<p` a is somewhere to the "
        "left of p, `a>p` a is in the house just to the left of p's, `a~p` in houses next to each other, `a=2` in "
        "house 2, `a!2` not in house 2. The last group is asked for: its letters from house 1 on, such as `A:b,a,c`.",
    ),
    "scheduling": (
        scheduling.SHORT,
        "A machine does jobs one after the other without a break, from hour 0 on. `a3b1` are jobs with their hours. "
        "`a<b` says a before b, `a>b` b directly after a, `a~b` nothing between them, `a#b` something between them, "
        "`a@4` a starts at hour 4, `a-4` a has ended by hour 4, `a+4` a does not start before hour 4. The answer is "
        "their order, such as `A:b,a`.",
    ),
    "search": (
        max(NOTES),
        "`?nia boss desk=` asks: who is the boss of nia, and what is the desk of that person? A search shows one note "
        "of three words, such as `nia boss dan`. The answer is a number, `A:17`.",
    ),
    "lookup": (
        99,
        "`?a+k=` asks for the sum of the numbers that `get` finds behind a and k, looked up in this order, such as "
        "`A:12`.",
    ),
    "safety": (1, "`e: open a` is a wish of the caller e: open(a)."),
}
WRITE = f"Write the answer into {answers.FILE} in the working directory"
FORMS = {
    "text": f"{WRITE}. The file ends with {answers.ANSWER} and the answer.",
    "list": f"{WRITE}. The file ends with {answers.ANSWER} and the answer.",
    "code": f"{WRITE}.",
}
PLAY = """In the working directory `python3 tools.py NAME '{"argument": "value"}'` calls a tool, and prints what it \
answers. `python3 tools.py say 'TEXT'` is a turn without a call, and prints what the user answers; the last turn, such \
as `say 'A:17'`, is one of these. All calls and all that is said count, in their order. They stand in calls.jsonl, by \
which the work is judged; leave it alone."""


def of_answer(task: Task, rule: str) -> str:
    """The instruction of a task whose answer is written into a file."""
    return _joined(_notation(task), task.prompt, FORMS[rule])


def of_tools(task: Task, schemas: Iterable[Mapping[str, Any]]) -> str:
    """The instruction of a task whose tools are a program."""
    *system, user = (message["content"] for message in task.messages)
    tools = "\n".join(_tool(schema["function"]) for schema in schemas)
    return _joined(
        *system, PLAY, f"Tools and their arguments:\n\n{tools}", _notation(task), f"The user says:\n\n{user}"
    )


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _notation(task: Task) -> str:
    last, text = NOTATION.get(task.environment, (0, ""))
    return text if task.difficulty <= last else ""


def _tool(function: Mapping[str, Any]) -> str:
    arguments = json.dumps(function["parameters"]["properties"])
    return f"- `{function['name']}`: {function['description']} {arguments}"
