"""Episodes of coding environments, played in real boxes."""

import asyncio
from collections.abc import Iterable

from ling_jax.envs import Task, environment, parse_action
from ling_jax.envs.base import StepResult


def play(task: Task, turns: Iterable[str], seed: int = 0) -> list[StepResult]:
    """The results of these turns, up to the end of the episode."""

    async def played():
        session, found = environment(task.environment).session(), []
        try:
            await session.open(task, seed)
            for turn in turns:
                found.append(await session.step(parse_action(turn, task.tools)))
                if found[-1].rewards:
                    break
        finally:
            await session.close()
        return found

    return asyncio.run(played())


def rewards_of(task: Task, turns: Iterable[str]) -> dict[str, float]:
    """Those of the last turn."""
    return dict(play(task, turns)[-1].rewards)
