"""Wishes that tools fulfil: the policy calls, reads the answers, and ends the episode with a turn without a call.

Each task is about one toolkit; some tools of the others are offered beside it, and work. It is judged by the state and
by the critical calls (Ling 2.6 report §3.2.1).
"""

import random
from typing import Any, NamedTuple

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Action, StepResult, Task, draw_task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.tools import bank, calendar, inventory
from ling_jax.envs.tools.call import Call, Tool, World, call_tool, carry_out, told

NAME = "tools"
DIFFICULTIES = range(1, 13)  # calls; our choice
IRRELEVANT = 3  # our choice: tools of other toolkits among those offered
SPARE_TURNS = 4  # our choice: for a look more, a mistake, the last word
TOKENS_PER_TURN = 256  # our choice: a call has some 60 tokens
SYSTEM = (
    "Do what the user asks with the tools: in the order asked, each thing once, nothing else. "
    "Then answer without calling a tool."
)
KITS = {kit.NAME: kit for kit in (bank, calendar, inventory)}
TOOLS: dict[str, tuple[str, Tool]] = {t.name: (kit.NAME, t) for kit in KITS.values() for t in kit.TOOLS}


class State(NamedTuple):
    task: Task
    world: World
    changes: tuple[Call, ...] = ()  # the calls that were carried out, those that only read aside
    made: int = 0  # calls that could be read, carried out or not
    turns: int = 0
    ended: bool = False


def make_task(seed: int, difficulty: int) -> Task:
    """Wishes that take `difficulty` calls; a call may need what an earlier one told."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: the tools do the same every time."""
    del seed
    return State(task, task.hidden["world"])


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Carries out the calls of a turn, in either of the formats of `chat.tool_calls`; each gets an answer.

    The end's rewards: "state" (the world is as it should be), "sequence" (the calls that change something are the
    right ones, in order, none besides), "outcome" (both) and "superfluous_calls" (calls more than were needed).
    """
    task, world, changes = state.task, state.world, list(state.changes)
    if state.ended:
        raise ValueError(f"task {task.id}: the episode has ended; reset it")
    offered = {name: TOOLS[name] for name in (schema["function"]["name"] for schema in task.tools)}
    errors = [f"{error}: write each call as the system message says" for error in action.errors]
    observation = [told({"error": error}) for error in errors]
    for call in action.tool_calls:
        world, result, error = carry_out(offered, world, call)
        observation.append(told(result if error is None else {"error": error}))
        if error is not None:
            errors.append(error)
        elif TOOLS[call["name"]][1].changes:
            changes.append(call)
    terminated = not observation
    truncated = not terminated and state.turns + 1 >= task.max_turns
    made = state.made + len(action.tool_calls)
    after = State(task, world, tuple(changes), made, state.turns + 1, terminated or truncated)
    rewards = _rewards(after) if after.ended else {}
    return after, StepResult(observation, rewards, terminated, truncated, "; ".join(errors) or None)


def session() -> PureSession:
    """An episode of as many turns as the task allows."""
    return PureSession(reset, step)


def solution(task: Task) -> tuple[str, ...]:
    """One call a turn, in the "xml" format, then the last word."""
    return (*(render_call(call, "xml") for call in task.hidden["calls"]), "Done.")


def _rewards(state: State) -> dict[str, float]:
    hidden = state.task.hidden
    right_state = state.world == hidden["goal"]
    right_calls = list(state.changes) == _changing(hidden["calls"])
    return {
        "outcome": float(right_state and right_calls),
        "state": float(right_state),
        "sequence": float(right_calls),
        "superfluous_calls": float(max(0, state.made - len(hidden["calls"]))),
    }


def _changing(calls: list[Call]) -> list[Call]:
    return [call for call in calls if TOOLS[call["name"]][1].changes]


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    world = {name: kit.initial(rng) for name, kit in KITS.items()}
    kit = KITS[rng.choice(list(KITS))]
    goal = world[kit.NAME]
    while goal == world[kit.NAME]:  # doing nothing must not be right
        wishes, calls, goal = _draw_wishes(rng, kit, world[kit.NAME], difficulty)
    others = [tool for name, tool in TOOLS.values() if name != kit.NAME]
    tools = [*kit.TOOLS, *rng.sample(others, IRRELEVANT)]
    rng.shuffle(tools)
    turns = difficulty + SPARE_TURNS
    return {
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": " ".join(wishes)}],
        "tools": [tool.schema for tool in tools],
        "hidden": {"world": world, "goal": {**world, kit.NAME: goal}, "calls": calls},
        "max_tokens": TOKENS_PER_TURN * turns,
        "max_turns": turns,
    }


def _draw_wishes(rng: random.Random, kit, state, count: int):
    """(wishes in words, their `count` calls, the kit's state after them)."""
    tools = {tool.name: tool for tool in kit.TOOLS}
    wishes, calls = [], []
    while len(calls) < count:
        wish, needed = kit.request(rng, state, count - len(calls))
        for call in needed:
            state, _, error = call_tool(tools, state, call)
            assert error is None, f"{kit.NAME} asks for what it refuses: {call}: {error}"
        wishes.append(wish)
        calls += needed
    return wishes, calls, state
