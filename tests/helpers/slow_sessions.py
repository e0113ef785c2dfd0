"""Sessions that take their time, hang or break, and an environment of them."""

import asyncio
import dataclasses
import threading
import time

from ling_jax.envs.base import StepResult, Task
from ling_jax.envs.reasoning import running_sums

END = StepResult([], {"outcome": 1.0}, True, False, None)


def told(text: str) -> StepResult:
    """A result after which the episode goes on."""
    return StepResult([{"role": "tool", "content": text}], {}, False, False, None)


class Sleeper:
    """Each step takes `seconds`; after `turns` steps it ends. It says which step it was."""

    replayable = True
    seconds, turns = 1.0, 1

    def __init__(self):
        self.steps, self.closed = 0, 0

    async def open(self, task, seed):
        pass

    async def step(self, action):
        self.steps += 1
        await self.wait(self.seconds)
        return END if self.steps == self.turns else told(f"step {self.steps}")

    async def close(self):
        self.closed += 1

    @staticmethod
    async def wait(seconds):
        await asyncio.sleep(seconds)


class Blocker(Sleeper):
    """It sleeps without leaving its thread to anybody else."""

    @staticmethod
    async def wait(seconds):
        time.sleep(seconds)


class Delegator(Sleeper):
    """It lets another thread sleep."""

    @staticmethod
    async def wait(seconds):
        await asyncio.to_thread(time.sleep, seconds)


WAYS = {"sleeps": Sleeper, "blocks": Blocker, "delegates": Delegator}


class Answering(Sleeper):
    """Its step returns what `answer` does, after an opening and before a closing that do what these say."""

    def __init__(self, answer=lambda: END, open=lambda: None, close=lambda: None, *, instant=False):
        super().__init__()
        self.instant, self._answer, self._open, self._close = instant, answer, open, close
        self.thread = None

    async def open(self, task, seed):
        self._open()

    async def step(self, action):
        self.thread = threading.current_thread()
        return self._answer()

    async def close(self):
        await super().close()
        self._close()


class Environment:
    """Running sums in sessions that `make` makes, all of which it keeps."""

    NAME, DIFFICULTIES = "running_sums", running_sums.DIFFICULTIES

    def __init__(self, make, *, max_turns=9):
        self._make, self.max_turns, self.sessions = make, max_turns, []

    def make_task(self, seed, difficulty) -> Task:
        return dataclasses.replace(running_sums.make_task(seed, difficulty), max_turns=self.max_turns)

    def solution(self, task):
        return running_sums.solution(task)

    def session(self):
        self.sessions.append(self._make())
        return self.sessions[-1]
