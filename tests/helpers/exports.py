"""Tasks written as directories, read back, and played: in boxes, or by the program that a directory carries."""

import asyncio
import io
import json
import random
import shlex

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import environment, parse_action
from ling_jax.envs.harbor import tool_files, tool_program
from ling_jax.envs.harbor.export import export_tasks
from ling_jax.envs.harbor.folder import read_task

DONE = render_call({"name": "task_done", "arguments": {}}, "xml")


def results(task, turns):
    """Of an episode in which the agent says these turns, up to its end."""

    async def play():
        session, found = environment(task.environment).session(), []
        try:
            await session.open(task, 0)
            for turn in turns:
                found.append(await session.step(parse_action(turn, task.tools)))
                if found[-1].rewards:
                    break
            return found
        finally:
            await session.close()

    return asyncio.run(play())


def rewards(task, turns):
    """Of an episode in which the agent says these turns."""
    return results(task, turns)[-1].rewards


def exported(tasks, folder):
    """The tasks of their directories, in the same order."""
    return [read_task(path) for path in export_tasks(tasks, folder)]


def bash(*commands):
    """The turns of an agent that runs these commands and says that it is done."""
    call = {"name": "execute_bash", "arguments": {"command": "\n".join(commands)}}
    return render_call(call, "json"), DONE


def unpacked(archive):
    """The task in a directory's archive."""
    return tool_program.read_task(io.BytesIO(archive))


def log_of(task, turns):
    """The log that the commands of these turns leave."""
    argvs = [shlex.split(command)[2:] for command in tool_files.commands(task, turns)]
    return "".join(json.dumps(tool_program.line_of(argv)) + "\n" for argv in argvs).encode()


def replayed(task, log):
    """The rewards of a log, by the code of the verifier and with its task."""
    judged = unpacked(tool_files.tests(task)["tools.zip"])
    return tool_program.worth(judged, log)[0]


def noisy(task, seed, rate=0.1):
    """Turns of the reference, some of which are left out, said twice, or slightly wrong."""
    rng, turns = random.Random(seed), []
    for turn in environment(task.environment).solution(task):
        kind = rng.choice(("skip", "twice", "wrong")) if rng.random() < rate else "right"
        turns += {"skip": [], "twice": [turn, turn], "right": [turn]}.get(kind, [wrong(rng, task, turn)])
    return turns


def wrong(rng, task, turn):
    """A turn with one value of a call changed, or other words."""
    calls = parse_action(turn, task.tools).tool_calls
    if not calls:
        return rng.choice(["A:done", "A:cannot", "A:0", "confirm?", "code?", ""])
    call = dict(rng.choice(calls))
    arguments = dict(call["arguments"])
    if arguments:
        name = rng.choice(sorted(arguments))
        value = arguments[name]
        arguments[name] = value + 1 if isinstance(value, int) else rng.choice(["ana", "b", "monday", 7])
    return render_call({"name": call["name"], "arguments": arguments}, "json")
