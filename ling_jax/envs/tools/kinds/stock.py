"""Goods that are free or held for somebody: {name: {"free": number, "held": number}}."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import Domain, Operation, Option, domain

MOST = 60  # our choice: of a delivery


def read(words: Domain, state: KitState, name: str):
    return state, known(state, name, words.noun)


def receive(words: Domain, state: KitState, name: str, count: int):
    return _change(words, state, name, count, 0)


def send(words: Domain, state: KitState, name: str, count: int):
    return _change(words, state, name, -count, 0)


def hold(words: Domain, state: KitState, name: str, count: int):
    return _change(words, state, name, -count, count)


def release(words: Domain, state: KitState, name: str, count: int):
    return _change(words, state, name, count, -count)


def _change(words: Domain, state: KitState, name: str, free: int, held: int):
    had = known(state, name, words.noun)
    now = {"free": had["free"] + free, "held": had["held"] + held}
    for shelf, left in now.items():
        if left < 0:
            raise ToolError(f"{had[shelf]} of {name!r} are {shelf}, which is less than {had[shelf] - left}")
    return {**state, name: now}, now


OPERATIONS = (
    Operation("read", read, "How many of a {noun} are free, and how many are held.", ("noun",), changes=False),
    Operation("receive", receive, "Books a delivery of a {noun}.", ("noun", "count")),
    Operation("send", send, "Sends free pieces of a {noun} away.", ("noun", "count")),
    Operation("hold", hold, "Holds free pieces of a {noun} for somebody.", ("noun", "count")),
    Operation("release", release, "Makes held pieces of a {noun} free again.", ("noun", "count")),
)
DESTROYS = "send"
PHRASES = {
    "free": ("How many pieces of the {noun} {name} are free?",),
    "held": ("How many pieces of the {noun} {name} are held?",),
    "receive": ("{count} pieces of the {noun} {name} have come: book them.", "Book {count} more of the {noun} {name}."),
    "send": ("Send {count} pieces of the {noun} {name}.", "Let {count} of the {noun} {name} go out."),
    "hold": ("Hold {count} pieces of the {noun} {name}.", "Put {count} of the {noun} {name} aside."),
    "clear": ("Send all free pieces of the {noun} {name}.",),
    "release": ("Release all held pieces of the {noun} {name}.",),
}


def arguments(words: Domain) -> dict:
    del words
    return {}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    names = rng.sample(words.names, size)
    return {name: {"free": rng.randrange(10, 99), "held": rng.randrange(1, 30)} for name in names}


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    del words
    name = rng.choice(sorted(state))
    free, held, count = state[name]["free"], state[name]["held"], rng.randint(1, MOST)
    asked, look = {"name": name}, ("read", (name,))
    yield Option("free", asked, [look], str(free))
    yield Option("held", asked, [look], str(held))
    yield Option("receive", {**asked, "count": count}, [("receive", (name, count))])
    if free:
        some = rng.randint(1, free)
        yield Option("send", {**asked, "count": some}, [("send", (name, some))])
        yield Option("hold", {**asked, "count": some}, [("hold", (name, some))])
        yield Option("clear", asked, [look, ("send", (name, free))])
    if held:
        yield Option("release", asked, [look, ("release", (name, held))])


DOMAINS = (
    domain(
        "warehouse",
        "stock_of stock_in stock_out stock_hold stock_release",
        ("lamp", "chair", "kettle", "rug", "mirror", "clock", "shelf", "vase", "stool", "basket"),
        noun="item",
    ),
    domain(
        "pharmacy",
        "drug_count drug_deliver drug_dispense drug_set_aside drug_put_back",
        ("aspirin", "insulin", "zinc", "morphine", "codeine", "saline", "iodine", "ibuprofen", "heparin", "quinine"),
        noun="drug",
    ),
    domain(
        "pantry",
        "food_left food_store food_serve food_keep food_unkeep",
        ("rice", "beans", "flour", "sugar", "salt", "oats", "lentils", "pasta", "honey", "coffee"),
        noun="food",
    ),
    domain(
        "parts",
        "part_count part_restock part_issue part_reserve part_unreserve",
        ("bolt", "gear", "belt", "valve", "spring", "washer", "piston", "gasket", "bearing", "nozzle"),
        noun="part",
    ),
    domain(
        "seeds",
        "seed_count seed_collect seed_give_out seed_freeze seed_thaw",
        ("maize", "barley", "wheat", "rye", "millet", "poppy", "clover", "flax", "hemp", "sesame"),
        noun="seed",
    ),
    domain(
        "tickets_desk",
        "seats_left seats_add seats_sell seats_block seats_unblock",
        ("hamlet", "carmen", "tosca", "aida", "faust", "salome", "otello", "medea", "norma", "rusalka"),
        noun="show",
    ),
)
