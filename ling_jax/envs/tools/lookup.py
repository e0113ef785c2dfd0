"""Sums of numbers that only a tool knows: `?b+d=` -> get b, get d, `3+8=11;A:11`. Short, for models of any size.

The prompt has no schemas: there is one tool, and a small model learns it from examples. The store holds names that
nobody asks for.
"""

import random
import string
from typing import Any

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Action, StepResult, Task, draw_task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.running_sums import planter, worked_sum
from ling_jax.envs.tools import lookup_episode
from ling_jax.envs.tools.call import Call
from ling_jax.envs.tools.lookup_episode import GET
from ling_jax.envs.tools.turns import State, take_turn

NAME = "lookup"
NAMES = string.ascii_lowercase[:12]  # our choice: few, so that a small model knows them all
DIFFICULTIES = range(1, 7)  # names asked for; our choice: as many again that nobody asks for
SPARE_TURNS = 4  # our choice: as in `envs.tools.environment`
AGAIN = 0.75  # our choice: of planted calls, how many ask again
TOKENS_PER_TURN = 64  # our choice: a call has some 30 tokens, in bytes 74


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` names of `NAMES`, each with a number from 1 to 9."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: the store does not change."""
    del seed
    return State(task, lookup_episode.begin(task.hidden))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Answers the calls of a turn; a turn without one ends the episode, with the rewards of `lookup_episode`."""
    return take_turn(lookup_episode, state, action, action.raw, action.errors)


def session() -> PureSession:
    """An episode of as many turns as the task allows."""
    return PureSession(reset, step)


def solution(task: Task, *, redundancy: float = 0.0, most: int | None = None, seed: int = 0) -> tuple[str, ...]:
    """A call a turn, then the worked sum. After each call a superfluous one is made again and again with `redundancy`.

    Most superfluous calls ask again, the others for a name that nobody asked for. There are at most `most` after each
    call, and in all no more than turns to spare. Raises ValueError unless 0 <= redundancy < 1.
    """
    rng, store = random.Random(f"{task.id}/{seed}"), task.hidden["store"]
    asked = [call["arguments"]["name"] for call in task.hidden["calls"]]
    others = sorted(store.keys() - set(asked))
    extra, spare, got = planter(redundancy, most, rng), task.max_turns - len(asked) - 1, []
    for name in asked:
        count = min(extra(), spare)
        got += [name, *(name if rng.random() < AGAIN else rng.choice(others) for _ in range(count))]
        spare -= count
    return (*(render_call(_call(name), "xml") for name in got), worked_sum([store[name] for name in asked]))


def _call(name: str) -> Call:
    return {"name": GET.name, "arguments": {"name": name}}


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    store = {name: rng.randrange(1, 10) for name in NAMES}
    asked = rng.sample(NAMES, difficulty)
    turns = difficulty + SPARE_TURNS
    return {
        "messages": [{"role": "user", "content": f"?{'+'.join(asked)}="}],
        "hidden": {
            "store": store,
            "calls": [_call(name) for name in asked],
            "answer": str(sum(store[name] for name in asked)),
        },
        "max_tokens": TOKENS_PER_TURN * turns,
        "max_turns": turns,
    }
