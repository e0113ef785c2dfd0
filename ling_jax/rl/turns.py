"""How an episode goes on: the policy's tokens, what its environment makes of a turn, what the policy reads then.

append_generation   a piece of decoding; a turn that has ended waits for its environment (`Episode.pending`)
pending_action      what the environment is to answer
append_result       its answer, and the text of the next prompt
append_observation  the tokens of that text
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ling_jax.chat.continuation import UnreadableAnswer
from ling_jax.chat.template import Piece, opens_reasoning
from ling_jax.chat.tool_calls import END_THINK, THINK
from ling_jax.engine import Event
from ling_jax.envs import environment, parse_action
from ling_jax.envs.base import Action, Message, StepResult
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.sessions import SECONDS, Repeated, SessionResult, open_session


def append_generation(episode: Episode, event: Event, reader: Reader) -> None:
    """Adds what a piece of decoding gave. A limit truncates the episode; an error of the engine is its failure."""
    if event.error or not np.isfinite(event.logps).all():
        error = event.error or "a log-prob is not finite"
        episode.end("infra_failed", f"the engine: {error}")
        return
    episode.trajectory.append_generation(event.tokens, event.logps, event.version)
    if event.experts is not None:
        episode.trajectory.append_experts(event.experts)
    if event.finish_reason == "stop":
        start, stop = episode.trajectory.turns[-1]
        episode.pending = reader.text(episode.trajectory.completion_ids[start : stop - 1].tolist())
    elif event.finish_reason is not None:
        episode.end("truncated")


def pending_action(episode: Episode) -> Action:
    """The turn that its environment is to answer, parsed."""
    return parse_action(_spoken(episode), episode.task.tools)


def append_result(episode: Episode, result: SessionResult, reader: Reader) -> list[Piece]:
    """Adds what the environment made of the pending turn; the text up to the policy's next turn, [] at the end.

    A result that failed ends the episode without a reward, and so does a chat template that rewrites what the policy
    has read or written. Words that are no answer in the template's form are the policy's mistake: they truncate the
    episode, or hiding would pay better than an honest wrong answer.
    """
    if result.step is None:
        episode.end(result.status, result.error)
        return []
    try:
        return _go_on(episode, result.step, reader)
    except UnreadableAnswer as error:
        episode.end("truncated", str(error))
    except ValueError as error:
        episode.end("infra_failed", str(error))
    return []


def append_observation(episode: Episode, tokens: Sequence[int], version: int, reader: Reader) -> None:
    """Adds what the policy reads before its next turn; where it leaves no room in the context the episode ends."""
    if len(episode.trajectory.prompt_ids) + len(episode.trajectory) + len(tokens) >= reader.context:
        episode.end("truncated")
    else:
        episode.trajectory.append_observation(tokens, version)


def tokens_left(episode: Episode, reader: Reader) -> int:
    """How many tokens the policy may still write."""
    context = len(episode.trajectory.prompt_ids) + len(episode.trajectory)
    return min(episode.max_tokens - episode.drawn, reader.context - context)


def past_actions(episode: Episode) -> list[Repeated]:
    """The turns that its environment has answered, with their observations."""
    found: list[tuple[Action, list[Message]]] = []
    for message in episode.reply:
        if message["role"] == "assistant":
            found.append((parse_action(message["content"], episode.task.tools), []))
        else:
            found[-1][1].append(message)
    return found


def rehearse(episode: Episode, reader: Reader, session_seconds: float = SECONDS) -> None:
    """Plays a fresh episode in which the task's own solution is said, behind no reasoning where a prompt opens it; does
    nothing where its environment has no solutions.

    Raises ValueError where the template cannot go on, and InfraError where the session fails, or takes longer than
    `session_seconds` for its opening or an action.
    """
    solution = environment(episode.task.environment).solution
    if solution is None:
        return
    with open_session(episode.task, episode.seed, session_seconds) as act:
        for turn in solution(episode.task):
            if episode.running:
                episode.pending = (END_THINK if episode.opened else "") + turn
                _go_on(episode, act(pending_action(episode)), reader)


def _spoken(episode: Episode) -> str:
    assert episode.pending is not None, f"rollout {episode.id} waits for no environment"
    return episode.opened + episode.pending


def _go_on(episode: Episode, step: StepResult, reader: Reader) -> list[Piece]:
    """`append_result` of a result that did not fail; errors as `Reader.continue_episode`."""
    spoken, words = _spoken(episode), episode.pending
    episode.pending = None
    episode.messages += [{"role": "assistant", "content": spoken}, *step.observation]
    episode.rewards = _numbers(step.rewards)
    if step.terminated or step.truncated:
        episode.end("finished" if step.terminated else "truncated")
        return []
    if len(episode.turns) >= episode.task.max_turns or episode.drawn >= episode.max_tokens:
        episode.end("truncated")
        return []
    message, pieces = reader.continue_episode(episode, words, step.observation)
    episode.history += [message, *step.observation]
    episode.opened = THINK if opens_reasoning(pieces) else ""
    return pieces


def _numbers(rewards: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in rewards.items()}
