"""A desk that serves a caller by the rules of a page: asks, checks, refuses, and does what is wished.

The caller has several wishes, one after the other, leaves out values, and insists where it is refused. It is judged by
the state, the critical calls, the answers, and by whether a rule was broken (Ling 2.6 report §3.2.1).
"""

import random
from collections.abc import Sequence
from typing import Any

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.answers import ANSWER
from ling_jax.envs.tools import policy
from ling_jax.envs.tools.call import Tool, World
from ling_jax.envs.tools.catalogue import KITS, LARGE
from ling_jax.envs.tools.dialogue import reset as reset
from ling_jax.envs.tools.dialogue import session as session
from ling_jax.envs.tools.dialogue import solution as solution
from ling_jax.envs.tools.dialogue import step as step
from ling_jax.envs.tools.episode import state_hash
from ling_jax.envs.tools.kits import CANNOT, Kit
from ling_jax.envs.tools.plan import INSISTS, Caller, Plan, calls_of, draw_plan, draw_until_hidden
from ling_jax.envs.tools.policy import CHECK, CODES, DESK, Rule
from ling_jax.envs.tools.words import LETTERS, PEOPLE

NAME = "service"
DIFFICULTIES = range(1, 11)  # wishes, toolkits, rules and what callers do grow with it; our choice
SPARE_TURNS = 4  # our choice: as in `envs.tools.environment`
TOKENS_PER_TURN = 512  # our choice: a turn may have several calls of some 60 tokens
SMALL_TOKENS = 80  # our choice: of a turn of the smallest tasks, in bytes at most 74
SMALL_MOST = 50  # of what is taken at once in the smallest tasks
SMALL_SYSTEM = (
    "Tools: see(name), add(name, count), take(name, count). Rules: take 50 at most, and say confirm? before. "
    "Last say A: and done, the value, or cannot."
)
SYSTEM = (
    "You serve {caller}. Do each wish once, and nothing else; several calls may stand in one turn. Keep these rules:\n"
    "{page}\n"
    "To ask the caller, write a turn without a call that names what you ask for, such as code? or confirm? or count? "
    f"End each wish with a turn without a call: {ANSWER} and the value that was asked for, or done where none was, or "
    f"{CANNOT} where a rule forbids it, the caller says no, or no tool does it. The caller then names the next wish."
)


def make_task(seed: int, difficulty: int) -> Task:
    """A caller's wishes, some of which the rules forbid."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def small_limit(kit: Kit) -> Rule:
    """That of the smallest tasks, always the same."""
    return {**policy.limit(random.Random(0), kit), "most": SMALL_MOST}


def fields(
    world: World,
    goal: World,
    tools: Sequence[Tool],
    rules: Sequence[Rule],
    caller: str,
    plans: Sequence[Plan],
    system: str,
    tokens: int,
    **more: Any,
) -> dict[str, Any]:
    """The fields of a task in which a caller has these wishes; `more` is hidden, too."""
    turns = [turn for plan in plans for turn in plan.turns]
    most = len(turns) + SPARE_TURNS
    wishes = [plan.wish for plan in plans]
    return {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": wishes[0]["text"]}],
        "hidden": {
            "world": world,
            "goal": state_hash(goal),
            "offered": [made.name for made in tools],
            "calls": calls_of(turns),
            "wishes": wishes,
            "rules": list(rules),
            "caller": caller,
            "talks": True,
            "turns": turns,
            **more,
        },
        "max_tokens": tokens * most,
        "max_turns": most,
    }


def page_of(rng: random.Random, rules: Sequence[Rule], others: Sequence[Kit], count: int) -> str:
    """The rules' page, among them `count` rules about toolkits that are not there."""
    more = [rule for kit in others for rule in policy.draw_rules(rng, kit, kit.initial(rng, 6), 3)]
    more = rng.sample(more, min(count, len(more)))
    mixed = [*rules, *more]
    rng.shuffle(mixed)
    return policy.page(mixed)


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    return draw_until_hidden(lambda: _draw_small(rng) if difficulty == 1 else _draw_large(rng, difficulty))


def _draw_small(rng: random.Random) -> dict[str, Any]:
    kit = KITS["counters"]
    world = {kit.name: kit.initial(rng, len(LETTERS))}
    rules, caller = [policy.confirm(kit), small_limit(kit)], Caller(LETTERS[0])
    tools = [made for made in kit.tools if made.name in ("see", "add", "take")]
    plan = draw_plan(rng, [kit], world, rules, caller, confirms=rng.random() < 0.5)
    return fields(world, plan.world, tools, rules, caller.name, [plan], SMALL_SYSTEM, SMALL_TOKENS)


def _draw_large(rng: random.Random, difficulty: int) -> dict[str, Any]:
    number = 1 + (difficulty - 1) // 4
    drawn = [KITS[name] for name in rng.sample(LARGE, number + 4)]
    kits, others = drawn[:number], drawn[number:]
    verifies = difficulty > 2 and rng.random() < 0.6
    code = rng.choice(CODES)
    honest = rng.random() < 0.8
    caller = Caller(rng.choice(PEOPLE), code if verifies else None, honest)
    world: dict[str, Any] = {kit.name: kit.initial(rng, 3 + difficulty // 2) for kit in (*kits, others[0])}
    rules = [rule for kit in kits for rule in policy.draw_rules(rng, kit, world[kit.name], 1 + difficulty // 3)]
    rules += policy.verify(kits) if verifies else []
    tools = [made for kit in kits for made in kit.tools] + rng.sample(others[0].tools, min(4, difficulty // 2))
    if verifies:
        codes = {name: rng.choice(CODES) for name in rng.sample(PEOPLE, 5)}
        world[DESK] = codes | {caller.name: code if honest else code + 1}
        tools.append(CHECK)
    rng.shuffle(tools)
    system = SYSTEM.format(caller=caller.name, page=page_of(rng, rules, others, difficulty // 2 * 2))
    plans = _draw_plans(rng, kits, world, rules, caller, difficulty)
    made = fields(world, plans[-1].world, tools, rules, caller.name, plans, system, TOKENS_PER_TURN)
    return {**made, "tools": [each.schema for each in tools]}


def _draw_plans(rng: random.Random, kits, world: World, rules, caller: Caller, difficulty: int) -> list[Plan]:
    plans: list[Plan] = []
    while len(plans) < 1 + difficulty // 2:
        plan = draw_plan(
            rng,
            kits,
            plans[-1].world if plans else world,
            rules,
            caller,
            most=1 + difficulty // 2,
            verified=bool(plans) and plans[-1].verified,
            confirms=rng.random() < 0.7,
            vague=difficulty > 2 and rng.random() < 0.4,
            insists=rng.sample(INSISTS, rng.randrange(min(4, difficulty) // 2 + 1)),
        )
        if all(plan.wish["text"] != other.wish["text"] for other in plans):
            plans.append(plan)
    return plans
