"""Episodes as ATIF, the Agent Trajectory Interchange Format, which other tools read and `evaluate.viewer` shows.

A step is a message of the prompt, a turn of the policy with the results of its calls, or another message of the
environment (Harbor's RFC 0001, version 1.7). What the format has no field for stands under `extra`:

    of a trajectory   task, environment, difficulty, seed, answer_seed, effort, status, rewards, error
    of a turn         text: all that the policy wrote; errors: what could not be parsed; unanswered: whether a limit or
                      a failure came before the environment's answer
    of its metrics    tokens: the text of each token; versions: [[weight version, tokens], …]; read_token_ids: what the
                      policy read since its last turn, so that no prompt stands twice
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version as package_version
from typing import Any

import numpy as np

from ling_jax.chat.tool_calls import parse_either
from ling_jax.envs.base import Message
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader

ATIF_VERSION = "ATIF-v1.7"

Step = dict[str, Any]


def to_atif(episode: Episode, reader: Reader, **extra: Any) -> dict[str, Any]:
    """The episode as an ATIF trajectory, at any moment; `extra` are more JSON values for its `extra`.

    Log-probs are the shortest decimals that give the recorded float32 again. The first turn has the token ids of the
    prompt.
    """
    task, trajectory = episode.task, episode.trajectory
    steps: list[Step] = []
    for message in task.messages:
        _append_message(steps, message)
    for turn, (text, observation) in enumerate(_turns(episode, reader)):
        steps.append(_turn_step(text, task.tools))
        steps[-1]["metrics"] = _metrics(episode, turn, reader) if turn < len(trajectory.turns) else {}
        steps[-1]["extra"] |= {"unanswered": True} if observation is None else {}
        for message in observation or ():
            _append_message(steps, message)
    agent = {"name": "ling_jax", "version": package_version("ling_jax"), "tool_definitions": list(task.tools)}
    return {
        "schema_version": ATIF_VERSION,
        "session_id": f"{task.id}-{episode.id}",
        "trajectory_id": f"{task.id}-{episode.id}-{episode.seed}",
        "agent": agent,
        "steps": [_numbered(step, number) for number, step in enumerate(steps, 1)],
        "final_metrics": {
            "total_prompt_tokens": sum(step["metrics"].get("prompt_tokens", 0) for step in steps if "metrics" in step),
            "total_completion_tokens": episode.drawn,
            "total_steps": len(steps),
        },
        "extra": _about(episode) | extra,
    }


def _about(episode: Episode) -> dict[str, Any]:
    task = episode.task
    return {
        "task": task.id,
        "environment": task.environment,
        "difficulty": task.difficulty,
        "seed": task.seed,
        "answer_seed": episode.seed,
        "effort": episode.effort,
        "status": episode.trajectory.status,
        "rewards": dict(episode.rewards),
        "error": episode.error,
    }


def _turns(episode: Episode, reader: Reader) -> Iterator[tuple[str, list[Message] | None]]:
    """(text, observation) of each turn; the observation of one that its environment has not answered is None."""
    answered: list[tuple[str, list[Message]]] = []
    for message in episode.reply:
        if message["role"] == "assistant":
            answered.append((message["content"], []))
        else:
            answered[-1][1].append(message)
    yield from answered
    for start, stop in episode.trajectory.turns[len(answered) :]:
        ids = episode.trajectory.completion_ids[start:stop].tolist()
        words = ids[:-1] if ids[-1] in reader.end_ids else ids
        yield episode.opened + reader.text(words), None


def _turn_step(text: str, tools: Sequence[Mapping[str, Any]]) -> Step:
    parsed = parse_either(text, tools)
    step = _agent_step(parsed.content, parsed.reasoning, parsed.tool_calls)
    step["extra"] = {"text": text} | ({"errors": list(parsed.errors)} if parsed.errors else {})
    return step


def _agent_step(content: str, reasoning: str | None, calls: Sequence[Mapping[str, Any]]) -> Step:
    step: Step = {"source": "agent", "message": content}
    if reasoning is not None:
        step["reasoning_content"] = reasoning
    if calls:
        step["tool_calls"] = [{"function_name": call["name"], "arguments": call["arguments"]} for call in calls]
    return step


def _append_message(steps: list[Step], message: Message) -> None:
    """Adds a message that the policy did not write in this episode; results of tools join the turn before them."""
    role, content = message["role"], message.get("content") or ""
    if role == "tool" and steps and steps[-1]["source"] == "agent":
        steps[-1].setdefault("observation", {"results": []})["results"].append({"content": content})
    elif role == "assistant":
        given = _agent_step(content, message.get("reasoning"), message.get("tool_calls") or ())
        steps.append(given | {"is_copied_context": True})
    else:
        steps.append({"source": role if role == "user" else "system", "message": content})


def _metrics(episode: Episode, turn: int, reader: Reader) -> dict[str, Any]:
    trajectory = episode.trajectory
    start, stop = trajectory.turns[turn]
    before = trajectory.turns[turn - 1][1] if turn else 0
    ids, read = (trajectory.completion_ids[a:b].tolist() for a, b in ((start, stop), (before, start)))
    prompt = {"prompt_token_ids": [*trajectory.prompt_ids, *read]} if not turn else {}
    extra = {"tokens": reader.token_texts(ids), "versions": _runs(trajectory.versions[start:stop])}
    return prompt | {
        "prompt_tokens": len(trajectory.prompt_ids) + start,
        "completion_tokens": stop - start,
        "completion_token_ids": ids,
        "logprobs": [float(str(logp)) for logp in trajectory.behaviour_logps[start:stop]],
        "extra": extra | ({"read_token_ids": read} if turn else {}),
    }


def _runs(versions: np.ndarray) -> list[list[int]]:
    values, counts = np.unique(versions, return_counts=True)  # versions never fall
    return np.stack([values, counts], axis=1).tolist()


def _numbered(step: Step, number: int) -> Step:
    """The step with its number and those of its calls, which the results name where there are as many of them."""
    calls, results = step.get("tool_calls", ()), step.get("observation", {"results": ()})["results"]
    for i, call in enumerate(calls):
        call["tool_call_id"] = f"call_{number}_{i + 1}"
    if len(calls) == len(results):
        for call, result in zip(calls, results, strict=True):
            result["source_call_id"] = call["tool_call_id"]
    return {"step_id": number} | step
