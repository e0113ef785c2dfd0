"""Items in stock."""

import random

from ling_jax.envs.tools.call import AMOUNT, NOUN, Call, KitState, ToolError, known, tool

NAME = "inventory"
ITEMS = ("lamp", "chair", "kettle", "rug", "mirror", "clock", "shelf", "vase", "stool", "basket")


def inventory_count(state: KitState, item: str):
    return state, {"item": item, "count": known(state, item, "item")}


def inventory_receive(state: KitState, item: str, count: int):
    total = known(state, item, "item") + count
    return {**state, item: total}, {"item": item, "count": total}


def inventory_ship(state: KitState, item: str, count: int):
    available = known(state, item, "item")
    if count > available:
        raise ToolError(f"{available} of {item!r} in stock, which is less than {count}")
    return {**state, item: available - count}, {"item": item, "count": available - count}


STOCKED = {"item": NOUN, "count": AMOUNT}
TOOLS = (
    tool(inventory_count, "How many of an item are in stock.", {"item": NOUN}, changes=False),
    tool(inventory_receive, "Adds delivered items to the stock.", STOCKED, changes=True),
    tool(inventory_ship, "Takes items out of the stock and sends them.", STOCKED, changes=True),
)


def initial(rng: random.Random) -> KitState:
    return {item: rng.randrange(5, 90) for item in rng.sample(ITEMS, 4)}


def request(rng: random.Random, state: KitState, most: int) -> tuple[str, list[Call]]:
    """(a wish in words, the calls that fulfil it, at most `most`)."""
    item = rng.choice(list(state))
    kinds = ["receive"] + ["ship"] * (state[item] > 0) + ["clear"] * (state[item] > 0 and most >= 2)
    kind = rng.choice(kinds)
    if kind == "receive":
        count = rng.randrange(1, 60)
        call = {"name": "inventory_receive", "arguments": {"item": item, "count": count}}
        return f"Book a delivery of {count} pieces of the item {item}.", [call]
    count = state[item] if kind == "clear" else rng.randint(1, state[item])
    ship = {"name": "inventory_ship", "arguments": {"item": item, "count": count}}
    if kind == "ship":
        return f"Ship {count} pieces of the item {item}.", [ship]
    read = {"name": "inventory_count", "arguments": {"item": item}}
    return f"Ship all that is in stock of the item {item}.", [read, ship]
