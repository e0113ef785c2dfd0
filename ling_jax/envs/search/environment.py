"""Requests that a search answers: the policy searches, opens, and ends with `A:` and what it found.

Difficulties 1 to 3 are notes of three words, for models of any size. From 4 on there are web pages, contacts, a
calendar and mails, and the request describes a chain through them, whose first thing is named, or described so that
each constraint alone fits several. The universe is made again from a seed wherever an episode needs it; a task holds
the seed alone. Source of the kind of task: Ling 2.6 report §3.2.1 (universes with near misses, target first).
"""

import random
from typing import Any, NamedTuple

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Action, Message, StepResult, Task, draw_task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.single_turn import ANSWER
from ling_jax.envs.search.answers import is_answer
from ling_jax.envs.search.library import TOOLS, Desk
from ling_jax.envs.search.notes import SEARCH
from ling_jax.envs.search.quests import LEVELS, NOTES, Quest, quest
from ling_jax.envs.tools.call import Tool, call_tool

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


class State(NamedTuple):
    task: Task
    desk: Desk
    made: int = 0  # calls that could be read, carried out or not
    turns: int = 0
    ended: bool = False


def make_task(seed: int, difficulty: int) -> Task:
    """A request with one answer; the number of links to follow, constraints and near misses grow."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def reset(task: Task, seed: int) -> State:
    """`seed` is not used: the tools do the same every time."""
    del seed
    return State(task, Desk(_quest(task).library))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Answers the calls of a turn; a turn without one ends the episode.

    The end's rewards: "outcome" (the answer is right), "found" (the document that holds it was read), "calls" (how many
    were made) and "superfluous_calls" (how many more than the reference's).
    """
    task, desk = state.task, state.desk
    if state.ended:
        raise ValueError(f"task {task.id}: the episode has ended; reset it")
    tools = {tool.name: tool for tool in _tools(task.difficulty)}
    errors, observation = list(action.errors), [_told(error) for error in action.errors]
    for call in action.tool_calls:
        desk, result, error = call_tool(tools, desk, call)
        observation.append(_told(result if error is None else error))
        errors += [] if error is None else [error]
    terminated = not observation
    truncated = not terminated and state.turns + 1 >= task.max_turns
    made = state.made + len(action.tool_calls)
    after = State(task, desk, made, state.turns + 1, terminated or truncated)
    rewards = _rewards(after, action.raw if terminated else "") if after.ended else {}
    return after, StepResult(observation, rewards, terminated, truncated, "; ".join(errors) or None)


def session() -> PureSession:
    """An episode of as many turns as the task allows."""
    return PureSession(reset, step)


def solution(task: Task) -> tuple[str, ...]:
    """One call a turn, then the answer. The reader opens what it was shown, and compares it with the request."""
    return (*(render_call(call, "xml") for call in task.hidden["calls"]), f"{ANSWER}{task.hidden['answer']}")


def _tools(difficulty: int) -> tuple[Tool, ...]:
    return (SEARCH,) if difficulty in NOTES else TOOLS


def _quest(task: Task) -> Quest:
    return quest(task.hidden["universe"], task.difficulty)


def _told(content: str) -> Message:
    return {"role": "tool", "content": content}


def _rewards(state: State, answer: str) -> dict[str, float]:
    hidden = state.task.hidden
    return {
        "outcome": float(is_answer(answer, [hidden["answer"], *hidden["aliases"]])),
        "found": float(hidden["evidence"] in state.desk.read),
        "calls": float(state.made),
        "superfluous_calls": float(max(0, state.made - len(hidden["calls"]))),
    }


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
