"""What every environment is: a maker of seeded tasks, and of sessions in which a policy acts on one of them.

An environment is a module (or any object) with the members of `Environment`; none inherits from another.
"""

import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ling_jax import data
from ling_jax.chat.tool_calls import Call, parse_either

HELD_OUT_SEEDS = 1 << 31  # our choice: seeds from here on make held-out tasks, those below make training tasks
HELD_OUT_FRACTION = 1 / 8  # our choice: of all prompts, on which seed's side they fall

DRAWS = 1000  # of a task before none is thought to be on a side of the split; chance alone needs them once in 10^57

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """One problem. All but `seed` is its content, JSON values that nobody changes; `id` is a hash of the content.

    The messages (and tools, OpenAI schemas) are what `chat.template` renders; `hidden` is for the environment alone.
    """

    environment: str
    difficulty: int
    seed: int
    messages: Sequence[Message]
    hidden: Mapping[str, Any]
    max_tokens: int  # of all the policy's turns together; the runner counts them
    max_turns: int
    tools: Sequence[Mapping[str, Any]] = ()

    @functools.cached_property
    def id(self) -> str:
        return hashlib.blake2b(self.content(), digest_size=16).hexdigest()

    @property
    def prompt(self) -> str:
        """What the user says, for models without a chat template."""
        return self.messages[-1]["content"]

    def content(self) -> bytes:
        """Canonical JSON: equal bytes mean equal content."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "seed"}
        return _json(fields).encode()


@dataclasses.dataclass(frozen=True)
class Action:
    """A turn of the assistant, parsed once (`chat.tool_calls.parse_either`)."""

    content: str
    reasoning: str | None
    tool_calls: tuple[Call, ...]
    raw: str  # all that the policy wrote, behind <think> where the prompt opened it
    errors: tuple[str, ...]  # what could not be parsed, by name


def parse_action(raw: str, tools: Sequence[Mapping[str, Any]] = ()) -> Action:
    """The action of a turn's text; no text raises an error. `tools` are the task's."""
    parsed = parse_either(raw, tools)
    return Action(parsed.content, parsed.reasoning, parsed.tool_calls, raw, parsed.errors)


class StepResult(NamedTuple):
    """What came of one turn of the policy."""

    observation: Sequence[Message]  # messages to append to the conversation
    rewards: Mapping[str, float]  # by name, "outcome" (1 solved, 0 not) among them; empty until the episode ends
    terminated: bool  # the policy ended the episode
    truncated: bool  # a limit did
    error: str | None  # what was wrong with the turn, for the log; the policy reads it in the observation


class InfraError(OSError):
    """What a session raises where the machine failed, not the policy's action: no server, no memory, no time."""


class Session(Protocol):
    """One episode of an environment.

    `step` raises nothing on what a policy wrote. An exception means that the environment is broken, or the machine
    (`InfraError`); the episode then has no reward. A session may have an attribute `instant`: True says that it only
    computes and never waits, and then it runs in its caller's thread.
    """

    replayable: bool  # whether a new session gives the same results to the same actions

    async def open(self, task: Task, seed: int) -> None:
        """Before the first turn; `seed` is for what is random in the episode itself."""

    async def step(self, action: Action) -> StepResult:
        """After one turn of the policy."""

    async def close(self) -> None:
        """Gives back what the session holds. It is called once, also after an `open` or a `step` that failed."""


class Environment(Protocol):
    """A maker of tasks and of sessions."""

    NAME: str
    DIFFICULTIES: range

    def make_task(self, seed: int, difficulty: int) -> Task:
        """The same bytes for the same (seed, difficulty); raises ValueError outside `DIFFICULTIES`."""

    @property
    def solution(self) -> Callable[[Task], tuple[str, ...]] | None:
        """Turns that solve a task, one after the other; None where the environment knows none."""

    def session(self) -> Session:
        """A session that has not been opened."""


def draw_task(
    environment: str,
    seed: int,
    difficulty: int,
    difficulties: range,
    draw: Callable[[random.Random, int], dict[str, Any]],
) -> Task:
    """The first of (seed, difficulty)'s draws whose prompt is on the seed's side of the split.

    Whether a prompt is held out is a function of the prompt (`is_held_out`), so no training seed makes a prompt that a
    held-out seed makes, however small the space. `draw(rng, difficulty)` gives the fields of `Task`. Raises ValueError
    on a seed or difficulty out of range, and where all draws have prompts of the other side.
    """
    if difficulty not in difficulties:
        raise ValueError(
            f"{environment}: difficulty is {difficulty!r}; expected {difficulties[0]} to {difficulties[-1]}"
        )
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{environment}: seed is {seed!r}; expected an integer from 0 (held out: {HELD_OUT_SEEDS})")
    for attempt in range(DRAWS):
        rng = random.Random(f"{environment}/{difficulty}/{seed}/{attempt}")
        task = Task(environment=environment, difficulty=difficulty, seed=seed, **draw(rng, difficulty))
        if is_held_out(task) == (seed >= HELD_OUT_SEEDS):
            return task
    side = "held out" if seed >= HELD_OUT_SEEDS else "for training"
    raise ValueError(
        f"{environment}: none of {DRAWS} draws of difficulty {difficulty} has a prompt that is {side}; draw tasks with "
        "prompts that differ more"
    )


def is_held_out(task: Task) -> bool:
    """The side of the split that a task's messages are on; limits, tools and seeds do not move it."""
    return data.is_held_out(_json(task.messages), HELD_OUT_FRACTION)


def _json(value) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
