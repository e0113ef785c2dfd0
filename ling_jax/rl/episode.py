"""An episode: a task and how far a policy has come with it, turn by turn."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ling_jax.chat.tool_calls import Call, parse_either
from ling_jax.envs import Task
from ling_jax.envs.base import Message
from ling_jax.rl.trajectory import FAILED, Trajectory


class EpisodeRequest(NamedTuple):
    """An episode to be; its fields are `Episode`'s."""

    id: int
    number: int
    task: Task
    seed: int
    effort: str | None = None


class Refused(NamedTuple):
    """A request of which no episode can come, such as a prompt that is longer than the context."""

    request: EpisodeRequest
    reason: str


@dataclasses.dataclass(eq=False)
class Episode:
    """A task and a policy's trajectory in it, which grow in place. No state of an environment is in it."""

    id: int
    number: int  # of the task, in the caller's list
    task: Task
    seed: int  # of its stream of random numbers
    max_tokens: int  # that the policy may write in all its turns
    trajectory: Trajectory
    messages: list[Message]  # the conversation so far, the policy's turns as it wrote them
    history: list[dict[str, Any]]  # the same as the template gets it: reasoning and calls are apart
    effort: str | None = None  # the thinking effort that its prompt asks for
    opened: str = ""  # <think> where the prompt of the policy's turn ends with it
    pending: str | None = None  # the turn, without its end token, that the environment has not answered yet
    rewards: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the environment, once it has ended
    error: str = ""  # what broke, of a failed one; why the conversation cannot go on from the policy's words
    parts: list[Trajectory] = dataclasses.field(default_factory=list)  # what is learnt from instead of the trajectory

    @property
    def running(self) -> bool:
        return self.trajectory.status == "running"

    @property
    def failed(self) -> bool:
        """Whether it has ended without a reward."""
        return self.trajectory.status in FAILED

    @property
    def drawn(self) -> int:
        """Tokens that the policy wrote."""
        return self.trajectory.drawn

    @property
    def samples(self) -> list[Trajectory]:
        """What is learnt from: the trajectory, or the parts that an agent's calls make."""
        return self.parts or [self.trajectory]

    @property
    def turns(self) -> list[str]:
        """What the policy wrote, turn by turn; a turn that a limit cut off is not among them."""
        return [message["content"] for message in self.reply if message["role"] == "assistant"]

    @property
    def reply(self) -> list[Message]:
        """The messages after the prompt."""
        return self.messages[len(self.task.messages) :]

    @property
    def calls(self) -> list[Call]:
        """The tool calls that it made and that could be read."""
        return [call for turn in self.turns for call in parse_either(turn, self.task.tools).tool_calls]

    @property
    def outcome(self) -> float:
        """1 solved, 0 not; an answer that a limit cut off is not solved."""
        return float(self.rewards.get("outcome", 0.0))

    @property
    def context(self) -> list[int]:
        """Tokens of the prompt and the completion."""
        return self.trajectory.context

    def end(self, status: str, error: str = "") -> None:
        """Ends the episode. One that failed has no rewards, and is named in the log."""
        self.trajectory.status, self.pending = status, None
        self.error = error or self.error
        if self.failed:
            self.rewards = {}
            print(f"rollout {self.id} {status}: {error}", flush=True)

    def to_json(self) -> dict[str, Any]:
        """All but the task as JSON values, at any moment between two pieces of decoding."""
        prompt = len(self.task.messages)
        return {
            "id": self.id,
            "task": self.number,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "effort": self.effort,
            "trajectory": self.trajectory.to_json(),
            "messages": self.messages[prompt:],
            "history": self.history[prompt:],
            "opened": self.opened,
            "pending": self.pending,
            "rewards": dict(self.rewards),
            "error": self.error,
            "parts": [part.to_json() for part in self.parts],
        }


def restore_episode(record: Mapping[str, Any], task: Task) -> Episode:
    """The episode that `to_json` gave. No environment acts: a collector brings a running one's session to where it was.

    Raises ValueError where the task is another one than the record's.
    """
    trajectory = Trajectory.from_json(record["trajectory"])
    if trajectory.task_id != task.id:
        raise ValueError(
            f"rollout {record['id']} was stored with task {trajectory.task_id}, and task {record['task']} is now "
            f"{task.id}: restore the tasks with which the run began"
        )
    return Episode(
        id=record["id"],
        number=record["task"],
        task=task,
        seed=record["seed"],
        max_tokens=record["max_tokens"],
        trajectory=trajectory,
        messages=[*task.messages, *record["messages"]],
        history=[*task.messages, *record["history"]],
        effort=record["effort"],
        opened=record["opened"],
        pending=record["pending"],
        rewards=record["rewards"],
        error=record["error"],
        parts=[Trajectory.from_json(part) for part in record.get("parts", ())],
    )
