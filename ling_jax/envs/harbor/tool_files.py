"""The files of an exported task with tools: a program for the agent, another one for the verifier, and the solution."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ling_jax.envs.base import Task, parse_action
from ling_jax.envs.harbor import tool_program
from ling_jax.envs.harbor.bundle import archive
from ling_jax.envs.search import episode as search
from ling_jax.envs.search.quests import quest
from ling_jax.envs.tools import episode as dialogue
from ling_jax.envs.tools import lookup_episode, tools_episode

EPISODES = {  # environment -> module of its episodes
    "search": search,
    "toolkits": dialogue,
    "service": dialogue,
    "safety": dialogue,
    "tools": tools_episode,
    "lookup": lookup_episode,
}
LOG = "/work/calls.jsonl"
RUN = """import sys

sys.path.insert(0, "{archive}")
from ling_jax.envs.harbor.tool_program import {function}

{function}("{archive}", "{log}")
"""
ABOUT = '''"""The tools of this task: each line of calls.jsonl is a call, or what was said.

    python3 tools.py NAME '{"argument": "value"}'
    python3 tools.py say 'TEXT'
"""

'''
OF_WISHES = ("text", "told", "confirm", "insists")  # what the user needs to answer


def files(task: Task) -> dict[str, bytes]:
    """What the agent finds: nothing of the goal, the answers, the rules and the calls that are expected."""
    return {
        "/data/tools.zip": _archive(task, _shown(task)),
        "/work/tools.py": (ABOUT + RUN.format(archive="/data/tools.zip", function="main", log=LOG)).encode(),
    }


def tests(task: Task) -> dict[str, bytes]:
    """The verifier, which replays the log."""
    return {
        "test.sh": b"#!/bin/bash\nexec python3 -I /tests/judge.py\n",
        "judge.py": RUN.format(archive="/tests/tools.zip", function="judge", log=LOG).encode(),
        "tools.zip": _archive(task, {**_shown(task), **task.hidden}),
    }


def schemas(task: Task) -> list[Mapping[str, Any]]:
    """Of the tools that are offered, in OpenAI's form; prompts of few characters have none."""
    return [tool.schema for tool in EPISODES[task.environment].offered(_shown(task))]


def commands(task: Task, turns: Sequence[str]) -> list[str]:
    """The commands of a shell that do what turns of the task's own environment do."""
    made = []
    for turn in turns:
        action = parse_action(turn, task.tools)
        words = [(call["name"], json.dumps(call["arguments"])) for call in action.tool_calls]
        made += [shlex.join(("python3", "tools.py", *each)) for each in words or [("say", action.content)]]
    return made


def _archive(task: Task, hidden: Mapping[str, Any]) -> bytes:
    module = EPISODES[task.environment].__name__
    files = {tool_program.TASK: tool_program.packed({"module": module, "hidden": hidden})}
    return archive((tool_program.__name__, module), files)


def _shown(task: Task) -> dict[str, Any]:
    """What tools and user need to answer; the rules and the caller's name, by which is judged, are empty."""
    hidden = task.hidden
    if task.environment == "search":
        library = quest(hidden["universe"], task.difficulty).library
        return {"documents": [[*document] for document in library.documents.values()]}
    if task.environment == "lookup":
        return {"store": hidden["store"]}
    if task.environment == "tools":
        return {"world": hidden["world"], "offered": [schema["function"]["name"] for schema in task.tools]}
    wishes = [{name: wish[name] for name in OF_WISHES} for wish in hidden["wishes"]]
    same = {name: hidden[name] for name in ("world", "offered", "talks")}
    return {**same, "wishes": wishes, "rules": [], "caller": ""}
