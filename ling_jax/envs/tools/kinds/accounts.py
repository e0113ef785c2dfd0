"""Registers with a balance each: {name: number}."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import Domain, Operation, Option, domain
from ling_jax.envs.tools.words import LETTERS, PEOPLE

MOST = 99  # our choice: of what an option adds at once


def read(words: Domain, state: KitState, name: str):
    return state, {name: known(state, name, words.noun)}


def add(words: Domain, state: KitState, name: str, count: int):
    return _put(state, {name: known(state, name, words.noun) + count})


def take(words: Domain, state: KitState, name: str, count: int):
    return _put(state, {name: _left(words, state, name, count)})


def move(words: Domain, state: KitState, source: str, target: str, count: int):
    left, before = _left(words, state, source, count), known(state, target, words.noun)
    if source == target:
        raise ToolError("source and target are the same; nothing to move")
    return _put(state, {source: left, target: before + count})


def _left(words: Domain, state: KitState, name: str, count: int) -> int:
    left = known(state, name, words.noun) - count
    if left < 0:
        raise ToolError(f"{name!r} has {left + count}, which is less than {count}")
    return left


def _put(state: KitState, changed: KitState):
    return {**state, **changed}, changed


OPERATIONS = (
    Operation("read", read, "How many {unit} a {noun} has.", ("noun",), changes=False),
    Operation("add", add, "Adds {unit} to a {noun}.", ("noun", "count")),
    Operation("take", take, "Takes {unit} from a {noun}.", ("noun", "count")),
    Operation("move", move, "Moves {unit} from one {noun} to another.", ("source", "target", "count")),
)
DESTROYS = "take"
PHRASES = {
    "read": ("How many {unit} does the {noun} {name} have?", "Tell me the {unit} of the {noun} {name}."),
    "add": ("Add {count} {unit} to the {noun} {name}.", "Put {count} {unit} on the {noun} {name}."),
    "take": ("Take {count} {unit} from the {noun} {name}.", "Use {count} {unit} of the {noun} {name}."),
    "move": ("Move {count} {unit} from the {noun} {name} to the {noun} {other}.",),
    "empty": ("Move all {unit} of the {noun} {name} to the {noun} {other}.",),
    "fill": ("Bring the {noun} {name} up to {count} {unit}.", "Top up the {noun} {name} to {count} {unit}."),
}
TERSE = {"read": ("see {name}",), "add": ("add {name} {count}",), "take": ("take {name} {count}",)}


def arguments(words: Domain) -> dict:
    del words
    return {}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    return {name: rng.randrange(20, 100) for name in rng.sample(words.names, size)}


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    del words
    name, other = rng.sample(sorted(state), 2)
    count, has = rng.randint(1, MOST), state[name]
    yield Option("read", {"name": name}, [("read", (name,))], str(has))
    yield Option("add", {"name": name, "count": count}, [("add", (name, count))])
    if has:
        some = rng.randint(1, has)
        yield Option("take", {"name": name, "count": some}, [("take", (name, some))])
        yield Option("move", {"name": name, "other": other, "count": some}, [("move", (name, other, some))])
        yield Option("empty", {"name": name, "other": other}, [("read", (name,)), ("move", (name, other, has))])
    yield Option("fill", {"name": name, "count": has + count}, [("read", (name,)), ("add", (name, count))])


DOMAINS = (
    domain("counters", "see add take move", LETTERS, noun="name", unit="points", phrases=TERSE),
    domain("wallets", "wallet_see wallet_pay_in wallet_pay_out wallet_send", PEOPLE, noun="wallet", unit="euros"),
    domain("loyalty", "points_of points_award points_redeem points_transfer", PEOPLE, noun="card", unit="points"),
    domain("phones", "credit_left credit_charge credit_use credit_give", PEOPLE, noun="phone", unit="minutes"),
    domain("leave", "leave_left leave_grant leave_take leave_donate", PEOPLE, noun="employee", unit="days of leave"),
    domain("printing", "quota_left quota_raise quota_use quota_hand_over", PEOPLE, noun="user", unit="pages"),
    domain(
        "fuel",
        "tank_level tank_fill tank_drain tank_pump_over",
        ("north", "south", "east", "west", "harbour", "depot", "reserve", "airfield", "quarry", "dam"),
        noun="tank",
        unit="litres",
    ),
    domain(
        "budgets",
        "budget_left budget_raise budget_spend budget_shift",
        ("travel", "training", "hardware", "software", "events", "rent", "repairs", "research", "press", "hiring"),
        noun="budget",
        unit="euros",
    ),
)
