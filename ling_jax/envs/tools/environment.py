"""Wishes that tools fulfil: the policy calls, reads the answers, and ends the episode with a turn without a call.

Each task is about one toolkit; some tools of the others are offered beside it, and work. It is judged by the state and
by the critical calls (Ling 2.6 report §3.2.1).
"""

import random
from typing import Any

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Action, StepResult, Task, draw_task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.tools import tools_episode
from ling_jax.envs.tools.call import call_tool
from ling_jax.envs.tools.tools_episode import KITS, TOOLS
from ling_jax.envs.tools.turns import State, take_turn

NAME = "tools"
DIFFICULTIES = range(1, 13)  # calls; our choice
IRRELEVANT = 3  # our choice: tools of other toolkits among those offered
SPARE_TURNS = 4  # our choice: for a look more, a mistake, the last word
TOKENS_PER_TURN = 256  # our choice: a call has some 60 tokens
SYSTEM = (
    "Do what the user asks with the tools: in the order asked, each thing once, nothing else. "
    "Then answer without calling a tool."
)


def make_task(seed: int, difficulty: int) -> Task:
    """Wishes that take `difficulty` calls; a call may need what an earlier one told."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: the tools do the same every time."""
    del seed
    offered = [schema["function"]["name"] for schema in task.tools]
    return State(task, tools_episode.Episode(task.hidden, offered, task.hidden["world"]))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Carries out the calls of a turn, in either of the formats of `chat.tool_calls`; each gets an answer.

    A turn without one ends the episode, with the rewards of `envs.tools.tools_episode`.
    """
    errors = [f"{error}: write each call as the system message says" for error in action.errors]
    return take_turn(tools_episode, state, action, action.content, errors)


def session() -> PureSession:
    """An episode of as many turns as the task allows."""
    return PureSession(reset, step)


def solution(task: Task) -> tuple[str, ...]:
    """One call a turn, in the "xml" format, then the last word."""
    return (*(render_call(call, "xml") for call in task.hidden["calls"]), "Done.")


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
