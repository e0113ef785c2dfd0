"""Pipelines over files: filter, join, total, convert, mend and plan tables, in as many steps as the difficulty says.

Each step writes a file, and each file is judged on its own: read out here, and compared with what the step computes
from right inputs. Some steps have a script that stops with an error, to be mended or gone around.
"""

import random
from typing import Any

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.coding import workspace
from ling_jax.envs.workflow.pipeline import Level, draw_pipeline, hidden_of
from ling_jax.envs.workflow.session import WorkflowSession
from ling_jax.envs.workflow.small import draw_small

NAME = "workflow"
SANDBOXED = True
ROW_KINDS = ("keep", "top", "convert", "pick")
TABLE_KINDS = (*ROW_KINDS, "total", "join")
ALL_KINDS = (*TABLE_KINDS, "queue", "plan")
LEVELS = {  # by difficulty, our choice; difficulty 1 is `small`
    2: Level(1, ROW_KINDS, 12),
    3: Level(2, (*ROW_KINDS, "total"), 16),
    4: Level(3, TABLE_KINDS, 20),
    5: Level(3, TABLE_KINDS, 24, damaged=True),
    6: Level(4, ALL_KINDS, 30, scripts=1),
    7: Level(5, ALL_KINDS, 40, damaged=True, scripts=1),
    8: Level(6, ALL_KINDS, 60, damaged=True, scripts=2),
    9: Level(8, ALL_KINDS, 100, damaged=True, scripts=2),
    10: Level(10, ALL_KINDS, 200, damaged=True, scripts=3),
}
DIFFICULTIES = range(1, 11)
TURNS_PER_STEP = 4  # our choice: to look, to write, to mend, to run again
TOKENS_PER_TURN = 768  # our choice
RULES = (
    "Carry out the steps in their order, each on the files of the work folder that it names, and write its result "
    "there. A .csv has a line of column names, a .json is a list of objects, a .jsonl has an object a line. Numbers "
    "are whole numbers. Rows keep their order and their columns where a step does not say otherwise."
)
SYSTEM = f"{RULES} Use the tools, and call {workspace.DONE} when all is written."


def make_task(seed: int, difficulty: int) -> Task:
    """A pipeline, and the files that it begins with."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def session() -> WorkflowSession:
    """An episode in a box."""
    return WorkflowSession()


def solution(task: Task, *, error_rate: float = 0.0, seed: int = 0) -> tuple[str, ...]:
    """A script for each step, run as a command; where a step has a script, it is run, mended and run again.

    Each step is left out with probability `error_rate`; of a task of difficulty 1 the command has a wrong number.
    """
    rng, hidden = random.Random(f"{task.id}/{seed}"), task.hidden
    if not task.tools:
        (command,) = hidden["commands"]
        return (_with_slip(rng, command) if rng.random() < error_rate else command,)
    calls: list[tuple[str, dict[str, Any]]] = []
    for number, command in enumerate(hidden["commands"]):
        if rng.random() < error_rate:
            continue
        fault = hidden["faults"].get(str(number))
        first = (workspace.BASH, {"command": f"python3 {fault['path']}" if fault else command})
        calls += [first, (workspace.REPLACE, dict(fault)), first] if fault else [first]
    turns = [*calls, (workspace.DONE, {})]
    return tuple(render_call({"name": name, "arguments": arguments}, "xml") for name, arguments in turns)


def null_solution(task: Task) -> tuple[str, ...]:
    """The agent that does nothing and says that it is done."""
    return solution(task, error_rate=1.0) if task.tools else ("",)


def copy_solution(task: Task) -> tuple[str, ...]:
    """The agent that copies an input to each output, and says that it is done."""
    first = sorted(task.hidden["files"])[0]
    command = "; ".join(f"cp {first} {output['path']}" for output in task.hidden["outputs"])
    if not task.tools:
        return (command,)
    calls = [{"name": workspace.BASH, "arguments": {"command": command}}, {"name": workspace.DONE, "arguments": {}}]
    return tuple(render_call(call, "xml") for call in calls)


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    if difficulty == 1:
        return draw_small(rng)
    level = LEVELS[difficulty]
    pipeline = draw_pipeline(rng, level)
    lines = []
    for number, step in enumerate(pipeline.steps):
        fault = pipeline.faults.get(number)
        there = f" {fault['path']} is meant to do it, and stops with an error." if fault else ""
        lines.append(f"{number + 1}. {step.words[0].upper()}{step.words[1:]}. Write {step.output}.{there}")
    there = ", ".join(sorted(pipeline.files))
    request = f"There are {there}.\n" + "\n".join(lines)
    turns = TURNS_PER_STEP * (level.steps + level.scripts) + 2
    return {
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}],
        "tools": list(workspace.TOOLS),
        "hidden": hidden_of(pipeline),
        "max_tokens": TOKENS_PER_TURN * turns,
        "max_turns": turns,
    }


def _with_slip(rng: random.Random, command: str) -> str:
    """The command with one of its digits changed."""
    place = rng.choice([i for i, character in enumerate(command) if character.isdigit()])
    digit = rng.choice([digit for digit in "123456789" if digit != command[place]])
    return command[:place] + digit + command[place + 1 :]
