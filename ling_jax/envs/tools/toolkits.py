"""Requests of several wishes for the tools of many toolkits, in one turn of the user.

Some of the tools that are offered are of no use, and some wishes are for what no tool does: then the right answer is
`cannot`. It is judged by the state, the critical calls and the answers (Ling 2.6 report §3.2.1).
"""

import random
from typing import Any

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.answers import ANSWER
from ling_jax.envs.tools.call import Tool
from ling_jax.envs.tools.catalogue import KITS, LARGE
from ling_jax.envs.tools.dialogue import reset as reset
from ling_jax.envs.tools.dialogue import session as session
from ling_jax.envs.tools.dialogue import solution as solution
from ling_jax.envs.tools.dialogue import step as step
from ling_jax.envs.tools.episode import state_hash
from ling_jax.envs.tools.kits import CANNOT, Kit
from ling_jax.envs.tools.plan import after, calls_of, grouped, stands_in

NAME = "toolkits"
DIFFICULTIES = range(1, 13)  # calls, or wishes that no tool fulfils; our choice
SPARE_TURNS = 4  # our choice: as in `envs.tools.environment`
TOKENS_PER_TURN = 512  # our choice: a turn may have several calls of some 60 tokens
UNKNOWN = 0.2  # our choice: share of wishes that no tool fulfils
SMALL_TOKENS = 80  # our choice: of a turn of the smallest tasks, in bytes at most 74
SMALL_SYSTEM = (
    "Tools: see(name), add(name, count), take(name, count). Last say A: and done, the value, or cannot if no tool fits."
)
SYSTEM = (
    "Do what the user asks with the tools: each wish once, in the order asked, nothing else. Several calls may stand "
    f"in one turn. Last, write a turn without a call: {ANSWER} and one entry for each wish, apart by commas: the value "
    f"that was asked for, done where none was, or {CANNOT} where no tool does what is asked."
)


def make_task(seed: int, difficulty: int) -> Task:
    """Wishes that take `difficulty` calls, those aside that no tool fulfils; a call may need what another one gave."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    if difficulty == 1:
        return _draw_small(rng)
    number = 1 + (difficulty + 1) // 4
    names = rng.sample(LARGE, number + 2 + difficulty // 3)
    kits, idle, foreign = _kits(names[:number]), _kits(names[number:-1]), KITS[names[-1]]
    world = {kit.name: kit.initial(rng, 3 + difficulty // 2) for kit in (*kits, *idle)}
    wishes, goal = _draw_wishes(rng, kits, foreign, world, difficulty)
    turns = [turn for wish in wishes for turn in grouped(wish.calls)]
    spare = [made for kit in idle for made in kit.tools]
    tools = [*(made for kit in kits for made in kit.tools), *rng.sample(spare, min(len(spare), 1 + difficulty))]
    rng.shuffle(tools)
    text = "\n".join(f"- {wish.text}" for wish in wishes) if len(wishes) > 1 else wishes[0].text
    fields = _fields(world, goal, tools, text, [wish.answer for wish in wishes], turns, TOKENS_PER_TURN)
    system = {"role": "system", "content": SYSTEM}
    return {**fields, "messages": [system, *fields["messages"]], "tools": [made.schema for made in tools]}


def _draw_small(rng: random.Random) -> dict[str, Any]:
    """A wish of few characters; the three tools are named in one line, and have no schemas."""
    kit, dials = KITS["counters"], KITS["dials"]
    world = {kit.name: kit.initial(rng, len(kit.domain.names))}
    tools = [made for made in kit.tools if made.name in ("see", "add", "take")]
    if rng.random() < UNKNOWN:
        wish = dials.draw_wish(rng, dials.initial(rng, len(dials.domain.names)), 1)._replace(calls=[], answer=CANNOT)
    else:
        wish = kit.draw_wish(rng, world[kit.name], 1)
    goal = after(world, wish.calls)
    fields = _fields(world, goal, tools, wish.text, [wish.answer], grouped(wish.calls), SMALL_TOKENS)
    return {**fields, "messages": [{"role": "system", "content": SMALL_SYSTEM}, *fields["messages"]]}


def _draw_wishes(rng: random.Random, kits: list[Kit], foreign: Kit, world, count: int):
    """(wishes, the world after them)."""
    other, wishes, used = foreign.initial(rng, 4), [], 0
    while used < count:
        if rng.random() < UNKNOWN:
            wish = foreign.draw_wish(rng, other, 3)._replace(calls=[], answer=CANNOT)
        else:
            kit = rng.choice(kits)
            wish = kit.draw_wish(rng, world[kit.name], count - used)
        texts = [made.text for made in (*wishes, wish)]
        if wish.text in texts[:-1] or any(stands_in(made.answer, texts) for made in (*wishes, wish)):
            continue
        world = after(world, wish.calls)
        wishes.append(wish)
        used += max(1, len(wish.calls))
    return wishes, world


def _kits(names: list[str]) -> list[Kit]:
    return [KITS[name] for name in names]


def _fields(world, goal, tools: list[Tool], text: str, answers: list[str], turns: list, tokens: int) -> dict[str, Any]:
    answer = ",".join(answers)
    turns = [*turns, {"say": f"{ANSWER}{answer}"}]
    most = len(turns) + SPARE_TURNS
    wish = {"text": text, "answer": answer, "told": {}, "confirm": "yes", "insists": []}
    return {
        "messages": [{"role": "user", "content": text}],
        "hidden": {
            "world": world,
            "goal": state_hash(goal),
            "offered": [made.name for made in tools],
            "calls": calls_of(turns),
            "wishes": [wish],
            "rules": [],
            "caller": "",
            "talks": False,
            "turns": turns,
        },
        "max_tokens": tokens * most,
        "max_turns": most,
    }
