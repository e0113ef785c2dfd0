"""What every environment is: a maker of seeded tasks, and a reset and a step that are functions of values.

An environment is a module (or any object) with the members of `Environment`; none inherits from another.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ling_jax import data

HELD_OUT_SEEDS = 1 << 31  # our choice: seeds from here on make held-out tasks, those below make training tasks
HELD_OUT_FRACTION = 1 / 8  # our choice: of all prompts, on which seed's side they fall

Message = dict[str, str]


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


class StepResult(NamedTuple):
    """What came of one turn of the policy."""

    observation: Sequence[Message]  # messages to append to the conversation
    rewards: Mapping[str, float]  # by name, "outcome" (1 solved, 0 not) among them; empty until the episode ends
    terminated: bool  # the policy ended the episode
    truncated: bool  # a limit did
    error: str | None  # what was wrong with the turn, for the log; the policy reads it in the observation
    state: Any  # to give to the next `step`


class Environment(Protocol):
    """`step` never raises on what a policy wrote; after the end of an episode it raises ValueError."""

    NAME: str
    DIFFICULTIES: range

    def make_task(self, seed: int, difficulty: int) -> Task:
        """The same bytes for the same (seed, difficulty); raises ValueError outside `DIFFICULTIES`."""

    def reset(self, task: Task, seed: int) -> Any:
        """The state before the first turn; `seed` is for what is random in the episode itself."""

    def step(self, state: Any, action: str) -> StepResult:
        """After the policy wrote `action`, one turn of the assistant."""

    def solution(self, task: Task) -> tuple[str, ...]:
        """Turns that solve it, one after the other."""


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
    on a seed or difficulty out of range.
    """
    if difficulty not in difficulties:
        raise ValueError(
            f"{environment}: difficulty is {difficulty!r}; expected {difficulties[0]} to {difficulties[-1]}"
        )
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{environment}: seed is {seed!r}; expected an integer from 0 (held out: {HELD_OUT_SEEDS})")
    for attempt in itertools.count():
        rng = random.Random(f"{environment}/{difficulty}/{seed}/{attempt}")
        task = Task(environment=environment, difficulty=difficulty, seed=seed, **draw(rng, difficulty))
        if is_held_out(task) == (seed >= HELD_OUT_SEEDS):
            return task


def is_held_out(task: Task) -> bool:
    """The side of the split that a task's messages are on; limits, tools and seeds do not move it."""
    return data.is_held_out(_json(task.messages), HELD_OUT_FRACTION)


def _json(value) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
