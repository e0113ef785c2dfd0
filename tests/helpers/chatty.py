"""Running sums in which the policy speaks three times."""

import asyncio
import dataclasses

from ling_jax.envs import PureSession, StepResult
from ling_jax.envs.reasoning import running_sums


class Chatty:
    """An environment that answers two turns with what the policy said, and likes short ones."""

    DIFFICULTIES = running_sums.DIFFICULTIES
    solution = staticmethod(running_sums.solution)

    @staticmethod
    def make_task(seed, difficulty):
        return dataclasses.replace(running_sums.make_task(seed, difficulty), max_turns=3)

    @staticmethod
    def session():
        return PureSession(lambda task, seed: (), Chatty.step)

    @staticmethod
    def step(state, action):
        said = (*state, action.raw)
        if len(said) < 3:
            return said, StepResult([{"role": "tool", "content": f"{len(action.raw)}"}], {}, False, False, None)
        return said, StepResult([], {"outcome": float(len(action.raw) < 9)}, True, False, None)


class Delayed(PureSession):
    """Chatty's, which takes its time with every second task: others are learnt from meanwhile."""

    instant = False

    async def open(self, task, seed):
        self._seconds = 0.2 * (task.seed % 2)
        await super().open(task, seed)

    async def step(self, action):
        await asyncio.sleep(self._seconds)
        return await super().step(action)
