"""Episodes between a policy, tools and a user who keeps to a script (`envs.tools.episode`).

A turn with calls goes to the tools, which answer each; a turn without one goes to the user.
"""

from typing import NamedTuple

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Action, StepResult, Task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.tools.call import told
from ling_jax.envs.tools.episode import Episode, act, begin, hear, rewards


class State(NamedTuple):
    task: Task
    episode: Episode
    turns: int = 0
    ended: bool = False


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: tools and user do the same every time."""
    del seed
    return State(task, begin(task.hidden))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """What tools or user answer to a turn. The end's rewards are those of `envs.tools.episode`."""
    if state.ended:
        raise ValueError(f"task {state.task.id}: the episode has ended; reset it")
    episode = state.episode
    errors = [f"{error}: write each call as the system message says" for error in action.errors]
    observation = [told({"error": error}) for error in errors]
    for call in action.tool_calls:
        episode, answer, error = act(episode, call)
        observation.append(answer)
        errors += [error] if error is not None else []
    if not observation:
        episode, observation = hear(episode, action.content)
    truncated = not episode.ended and state.turns + 1 >= state.task.max_turns
    ended = episode.ended or truncated
    result = StepResult(
        observation=observation,
        rewards=rewards(episode) if ended else {},
        terminated=episode.ended,
        truncated=truncated,
        error="; ".join(errors) or None,
    )
    return State(state.task, episode, state.turns + 1, ended), result


def session() -> PureSession:
    """An episode of as many turns as the task allows."""
    return PureSession(reset, step)


def solution(task: Task) -> tuple[str, ...]:
    """The turns of the reference, calls in the "xml" format."""
    return tuple(
        turn["say"] if "say" in turn else "\n".join(render_call(call, "xml") for call in turn["calls"])
        for turn in task.hidden["turns"]
    )
