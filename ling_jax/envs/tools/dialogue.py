"""Episodes between a policy, tools and a user who keeps to a script (`envs.tools.episode`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Action, StepResult, Task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.tools import episode
from ling_jax.envs.tools.turns import State, take_turn


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: tools and user do the same every time."""
    del seed
    return State(task, episode.begin(task.hidden))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """What tools or user answer to a turn; the end's rewards are those of `envs.tools.episode`."""
    errors = [f"{error}: write each call as the system message says" for error in action.errors]
    return take_turn(episode, state, action, action.content, errors)


def session() -> PureSession:
    """An episode of as many turns as the task allows."""
    return PureSession(reset, step)


def solution(task: Task) -> tuple[str, ...]:
    """The turns of the reference."""
    return said(task.hidden["turns"])


def said(turns: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Turns as a policy writes them, each {"say": text} or {"calls": [call, …]}; calls in the "xml" format."""
    return tuple(
        turn["say"] if "say" in turn else "\n".join(render_call(call, "xml") for call in turn["calls"])
        for turn in turns
    )
