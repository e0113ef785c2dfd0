"""Requests that a search answers: the policy searches, opens, and ends with `A:` and what it found.

Difficulties 1 to 3 are notes of three words, for models of any size. From 4 on there are web pages, contacts, a
calendar and mails, and the request describes a chain through them, whose first thing is named, or described so that
each constraint alone fits several. The universe is made again from a seed wherever an episode needs it; a task holds
the seed alone. Source of the kind of task: Ling 2.6 report §3.2.1 (universes with near misses, target first).
"""

import random
from typing import Any

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Action, StepResult, Task, draw_task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.answers import ANSWER
from ling_jax.envs.search import episode
from ling_jax.envs.search.library import TOOLS, Desk
from ling_jax.envs.search.quests import LEVELS, quest
from ling_jax.envs.tools.turns import State, take_turn

NAME = "search"
DIFFICULTIES = range(1, 13)
SPARE_TURNS = 4  # our choice: as in `envs.tools.environment`
TOKENS_PER_NOTE = 96  # our choice: a call has some 30 tokens, in bytes 80
TOKENS_PER_TURN = 256  # our choice: a call has some 50 tokens, and a model may think before it
SEEDS = 1 << 48  # of universes
SYSTEM = (
    "Find out with the tools what the user asks; nobody knows it without them. In a request, 'that town' is the town "
    f"named last, and so on. Answer without calling a tool, at the end {ANSWER} and the answer alone, such as "
    f"{ANSWER}1234."
)


def make_task(seed: int, difficulty: int) -> Task:
    """A request with one answer; the number of links to follow, constraints and near misses grow."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: the tools do the same every time."""
    del seed
    library = quest(task.hidden["universe"], task.difficulty).library
    return State(task, episode.Episode(task.hidden, Desk(library)))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Answers the calls of a turn; a turn without one ends the episode, with the rewards of `envs.search.episode`."""
    return take_turn(episode, state, action, action.raw, action.errors)


def session() -> PureSession:
    """An episode of as many turns as the task allows."""
    return PureSession(reset, step)


def solution(task: Task) -> tuple[str, ...]:
    """One call a turn, then the answer. The reader opens what it was shown, and compares it with the request."""
    return (*(render_call(call, "xml") for call in task.hidden["calls"]), f"{ANSWER}{task.hidden['answer']}")


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    seed = rng.randrange(SEEDS)
    found = quest(seed, difficulty)
    answer, *aliases = found.accepted
    user = {"role": "user", "content": found.request}
    described = difficulty in LEVELS
    turns = len(found.calls) * (2 if described else 1) + SPARE_TURNS
    return {
        "messages": [{"role": "system", "content": SYSTEM}, user] if described else [user],
        "tools": [tool.schema for tool in TOOLS] if described else [],
        "hidden": {
            "universe": seed,
            "calls": list(found.calls),
            "answer": answer,
            "aliases": aliases,
            "evidence": found.evidence,
        },
        "max_tokens": (TOKENS_PER_TURN if described else TOKENS_PER_NOTE) * turns,
        "max_turns": turns,
    }
