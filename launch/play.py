"""Plays a task by hand: shows its messages and tools, reads turns, shows observations and the rewards.

    python -m launch.play --task=tools --difficulty=2 --seed=0
    python -m launch.play --task=repositories --difficulty=1 --solution
    python -m launch.play --task=mine.guess:Guess
    python -m launch.play --task=path/to/task_folder

`--task` is an environment, module:name for one of your own, a Harbor folder (of one task, or of many), or a file of
questions; of many tasks `--seed` counts from 0. A line is a turn. One that begins with / and a tool's name is a call:

    /execute_bash ls -l                         the only argument is the rest of the line
    /transfer to=ann amount=3                   arguments by name, in quotes where they have blanks
    /search_replace {"path": "a.py", …}         arguments as JSON

A line that ends with a backslash goes on in the next one. /tools shows the tools, /exit or Ctrl-D ends. `--solution`
plays the turns of the environment's own solution.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from launch.chat import lines
from launch.flags import run_program, usage_errors
from launch.sandboxed import start_sandbox
from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import InfraError, StepResult, Task, environment, parse_action
from ling_jax.envs.sources import TaskSource, check_tasks, tasks_of_path
from ling_jax.messages import nearest, shown
from ling_jax.rl.sessions import open_session

TASK = flags.DEFINE_string("task", None, "an environment, a folder or a file of tasks", required=True)
DIFFICULTY = flags.DEFINE_integer("difficulty", 1, "of a task that is made", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "of a task that is made, or its number", lower_bound=0)
SOLUTION = flags.DEFINE_bool("solution", False, "play the reference solution")

Tool = Mapping[str, Any]


def main() -> None:
    with usage_errors():
        task = chosen_task(TASK.value, DIFFICULTY.value, SEED.value)
        turns = solution_of(task) if SOLUTION.value else typed_turns(task)
        start_sandbox([task.environment])
    about = f"difficulty {task.difficulty}, seed {task.seed}, at most {task.max_turns} turns"
    print(f"task {task.id} of {task.environment}: {about}", flush=True)
    for message in task.messages:
        show(message["role"], message["content"])
    if task.tools:
        show("tools", described(task.tools))
    try:
        with open_session(task, SEED.value) as act:
            play(task, turns, act)
    except InfraError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def chosen_task(name: str, difficulty: int, seed: int) -> Task:
    """The task that the flags name. Raises ValueError or OSError where there is none."""
    if not os.path.exists(name):
        return environment(name).make_task(seed, difficulty)
    check_tasks(TaskSource(path=name), "--task")
    found = tasks_of_path(name)
    if seed >= len(found):
        raise ValueError(f"--seed={seed}: {name} has {len(found)} tasks, from 0 to {len(found) - 1}")
    return found[seed]


def solution_of(task: Task) -> Sequence[str]:
    """The turns of the reference. Raises ValueError where the environment knows none."""
    solution = environment(task.environment).solution
    if solution is None:
        raise ValueError(f"--solution: environment {task.environment} knows no solutions")
    return solution(task)


def typed_turns(task: Task) -> Iterator[str]:
    """The user's turns, as a policy would write them; a line that is no call is said again."""
    text = ""
    for line in lines():
        text += line.removesuffix("\\")
        if line.endswith("\\"):
            text += "\n"
        elif text == "/exit":
            return
        elif text == "/tools":
            show("tools", json.dumps(list(task.tools), indent=1))
            text = ""
        elif text:
            try:
                yield turn_of(text, task.tools)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
            text = ""


def turn_of(text: str, tools: Sequence[Tool]) -> str:
    """A turn as a policy writes it, of a text in the short form. Raises ValueError on a call that cannot be read."""
    name, _, rest = text[1:].partition(" ")
    if not text.startswith("/") or not name:
        return text
    known = {tool["function"]["name"]: tool["function"]["parameters"].get("properties", {}) for tool in tools}
    if name not in known:
        there = ", ".join(f"/{tool}" for tool in (*known, "tools", "exit"))
        raise ValueError(f"there is no /{name}{nearest(name, known)}; there are {there}")
    call = {"name": name, "arguments": arguments_of(rest.strip(), known[name], name)}
    try:
        return render_call(call, "xml")
    except ValueError:  # an argument spells a tag of that form
        return render_call(call, "json")


def arguments_of(text: str, properties: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments behind a tool's name. Raises ValueError."""
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise ValueError(f"/{name}: {shown(text)} is not JSON: {error}") from None
    if not text:
        return {}
    if len(properties) == 1:
        ((key, schema),) = properties.items()
        return {key: typed(text, schema)}
    found = {}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"/{name}: {shown(word)} has no name; write {' '.join(f'{p}=…' for p in properties)}")
        found[key] = typed(value, properties.get(key, {}))
    return found


def typed(text: str, schema: Mapping[str, Any]) -> Any:
    """The value of an argument: text where its schema says so, else JSON where it is some."""
    if schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def play(task: Task, turns: Iterator[str] | Sequence[str], act: Any) -> None:
    """Plays turns until the episode ends, and prints what comes of them."""
    for number, turn in enumerate(turns, 1):
        if SOLUTION.value:
            show("assistant", turn)
        result = act(parse_action(turn, task.tools))
        for message in result.observation:
            show(message["role"], message["content"])
        if result.terminated or result.truncated or number >= task.max_turns:
            print(ended(result, number), flush=True)
            return
    print("the episode has not ended: no rewards", flush=True)


def ended(result: StepResult, turns: int) -> str:
    """The last line."""
    how = "finished" if result.terminated else "cut off by a limit"
    rewards = ", ".join(f"{name} {value:g}" for name, value in result.rewards.items()) or "no rewards"
    return f"{how} after {turns} turn{'s' * (turns > 1)}: {rewards}{f' ({result.error})' if result.error else ''}"


def described(tools: Sequence[Tool]) -> str:
    """A line for each tool, in the short form."""
    return "\n".join(
        f"/{' '.join([f['name'], *f['parameters'].get('properties', {})])}    {f.get('description', '')}"
        for f in (tool["function"] for tool in tools)
    )


def show(role: str, text: str) -> None:
    """Prints a message under its role."""
    print(f"── {role} ──\n{text}", flush=True)


if __name__ == "__main__":
    run_program(main)
