"""Turns of a policy in an episode of tools: those with calls go to the tools, one without to the user.

A module of episodes, such as `envs.tools.episode`, has act(episode, call) and hear(episode, words), which give the
episode after it and what is answered, refused(error), the message of a mistake, and rewards(episode).
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from ling_jax.envs.base import Action, StepResult, Task


class State(NamedTuple):
    task: Task
    episode: Any  # of a module of episodes
    turns: int = 0
    ended: bool = False


def take_turn(
    module: ModuleType, state: State, action: Action, words: str, errors: Sequence[str]
) -> tuple[State, StepResult]:
    """What tools or user answer to a turn; `words` are what it says, `errors` what could not be parsed of it.

    Rewards come where the user ends the episode, and with the last turn that the task allows. Raises ValueError after
    the end of an episode.
    """
    task, episode = state.task, state.episode
    if state.ended:
        raise ValueError(f"task {task.id}: the episode has ended; reset it")
    errors, observation = [*errors], [module.refused(error) for error in errors]
    for call in action.tool_calls:
        episode, answer, error = module.act(episode, call)
        observation.append(answer)
        errors += [] if error is None else [error]
    if not observation:
        episode, observation = module.hear(episode, words)
    truncated = not episode.ended and state.turns + 1 >= task.max_turns
    ended = episode.ended or truncated
    rewards = module.rewards(episode) if ended else {}
    result = StepResult(observation, rewards, episode.ended, truncated, "; ".join(errors) or None)
    return State(task, episode, state.turns + 1, ended), result
