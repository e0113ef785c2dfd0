"""Sessions of environments that are functions of values: `reset(task, seed) -> state`, `step(state, action)`."""

from collections.abc import Callable
from typing import Any

from ling_jax.envs.base import Action, StepResult, Task

Reset = Callable[[Task, int], Any]
Step = Callable[[Any, Action], tuple[Any, StepResult]]


class PureSession:
    """A session that holds the state between two steps. `step` raises ValueError after the end of an episode."""

    instant = replayable = True

    def __init__(self, reset: Reset, step: Step):
        self._reset, self._step, self._state = reset, step, None

    async def open(self, task: Task, seed: int) -> None:
        """The state before the first turn."""
        self._state = self._reset(task, seed)

    async def step(self, action: Action) -> StepResult:
        """The result of a turn; the state moves on."""
        self._state, result = self._step(self._state, action)
        return result

    async def close(self) -> None:
        """Nothing is held."""
