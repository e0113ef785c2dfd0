"""Sums of numbers that only a tool knows: `?b+d=` -> get b, get d, `3+8=11;A:11`. Short, for models of any size.

The prompt has no schemas: there is one tool, and a small model learns it from examples. The store holds names that
nobody asks for.
"""

import random
import string
from typing import Any, NamedTuple

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Action, Message, StepResult, Task, draw_task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.running_sums import planter, worked_sum
from ling_jax.envs.reasoning.single_turn import is_solved
from ling_jax.envs.tools.call import NOUN, Call, KitState, ToolError, call_tool, tool

NAME = "lookup"
NAMES = string.ascii_lowercase[:12]  # our choice: few, so that a small model knows them all
DIFFICULTIES = range(1, 7)  # names asked for; our choice: as many again that nobody asks for
SPARE_TURNS = 4  # our choice: as in `envs.tools.environment`
AGAIN = 0.75  # our choice: of planted calls, how many ask again
TOKENS_PER_TURN = 64  # our choice: a call has some 30 tokens, in bytes 74


class State(NamedTuple):
    task: Task
    calls: tuple[Call, ...] = ()  # those that were answered with a number
    made: int = 0  # calls that could be read, answered or not
    turns: int = 0
    ended: bool = False


def get(state: KitState, name: str):
    if name not in state:
        raise ToolError(f"no {name[:1]!r}")  # short, as all that a small model reads
    return state, state[name]


GET = tool(get, "The number behind a name.", {"name": NOUN}, changes=False)


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` names of `NAMES`, each with a number from 1 to 9."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: the store does not change."""
    del seed
    return State(task)


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Answers the calls of a turn; a turn without one ends the episode.

    The end's rewards: "answer" (right, as in `envs.reasoning`), "sequence" (all names that were asked for were got, in
    their order, whatever was got besides), "outcome" (both) and "superfluous_calls" (calls more than were needed).
    """
    task, calls = state.task, list(state.calls)
    if state.ended:
        raise ValueError(f"task {task.id}: the episode has ended; reset it")
    errors, observation = list(action.errors), [_told(error) for error in action.errors]
    for call in action.tool_calls:
        _, number, error = call_tool({GET.name: GET}, task.hidden["store"], call)
        observation.append(_told(str(number) if error is None else error))
        if error is None:
            calls.append(call)
        else:
            errors.append(error)
    terminated = not observation
    truncated = not terminated and state.turns + 1 >= task.max_turns
    made = state.made + len(action.tool_calls)
    after = State(task, tuple(calls), made, state.turns + 1, terminated or truncated)
    rewards = _rewards(after, action.raw if terminated else "") if after.ended else {}
    return after, StepResult(observation, rewards, terminated, truncated, "; ".join(errors) or None)


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


def _told(content: str) -> Message:
    return {"role": "tool", "content": content}


def _rewards(state: State, answer: str) -> dict[str, float]:
    wanted, made = state.task.hidden["calls"], iter(state.calls)
    in_order = all(any(call == wish for call in made) for wish in wanted)
    solved = is_solved(answer, state.task)
    return {
        "outcome": float(solved and in_order),
        "answer": float(solved),
        "sequence": float(in_order),
        "superfluous_calls": float(max(0, state.made - len(wanted))),
    }


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
