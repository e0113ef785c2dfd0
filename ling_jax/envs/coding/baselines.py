"""What the simplest policies get on tasks: whether a reward can be had for nothing, said before a run asks for it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ling_jax.envs.base import Environment, Task, parse_action

POLICIES = {  # members of a coding environment that write turns
    "reference": "solution",
    "null": "null_solution",
    "copy": "copy_solution",
}


def baselines(env: Environment, tasks: Iterable[Task]) -> dict[str, Any]:
    """{"tasks": how many, policy: the share that it solves}: the reference's should be 1, those of the others 0.

    `env` is a coding environment. Raises what a session raises, such as InfraError.
    """
    tasks = list(tasks)
    shares = {name: _share_solved(env, tasks, getattr(env, member)) for name, member in POLICIES.items()}
    return {"tasks": len(tasks)} | shares


def _share_solved(env: Environment, tasks: Sequence[Task], policy: Callable[[Task], Sequence[str]]) -> float:
    return sum(asyncio.run(_outcome(env, task, policy(task))) for task in tasks) / max(1, len(tasks))


async def _outcome(env: Environment, task: Task, turns: Iterable[str]) -> float:
    session = env.session()
    try:
        await session.open(task, 0)
        for turn in turns:
            result = await session.step(parse_action(turn, task.tools))
            if result.rewards:
                return result.rewards["outcome"]
        return 0.0
    finally:
        await session.close()
