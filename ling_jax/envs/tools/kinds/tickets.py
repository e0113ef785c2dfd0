"""Things that go from state to state, by allowed steps only: {name: {"state", "owner", "days"}}."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import Domain, Operation, Option, domain, table
from ling_jax.envs.tools.words import PEOPLE

IDS = tuple(f"{letter}{number}" for letter in "abcdxyz" for number in range(10, 30))


def read(words: Domain, state: KitState, name: str):
    return state, known(state, name, words.noun)


def find(words: Domain, state: KitState, status: str):
    del words
    return state, [name for name in sorted(state) if state[name]["state"] == status]


def advance(words: Domain, state: KitState, name: str, status: str):
    ticket = known(state, name, words.noun)
    allowed = words.words["steps"][ticket["state"]]
    if status not in allowed:
        after = " or ".join(allowed) or "nothing"
        raise ToolError(f"{name!r} is {ticket['state']}; after that comes {after}")
    return _put(state, name, {"state": status})


def assign(words: Domain, state: KitState, name: str, person: str):
    if known(state, name, words.noun)["owner"] == person:
        raise ToolError(f"{name!r} is {person}'s already")
    return _put(state, name, {"owner": person})


def _put(state: KitState, name: str, changed: KitState):
    return {**state, name: {**state[name], **changed}}, {name: changed}


OPERATIONS = (
    Operation("read", read, "State, owner and age in days of {a} {noun}.", ("noun",), changes=False),
    Operation("find", find, "Every {noun} in a state.", ("state",), changes=False),
    Operation("advance", advance, "Moves {a} {noun} to the next state.", ("noun", "state")),
    Operation("assign", assign, "Gives {a} {noun} to another person.", ("noun", "person")),
)
DESTROYS = "advance"
PHRASES = {
    "state": ("In which state is the {noun} {name}?",),
    "owner": ("Whose is the {noun} {name}?", "Who looks after the {noun} {name}?"),
    "advance": ("The {noun} {name} is {state} now: note that.", "Make the {noun} {name} {state}."),
    "assign": ("Give the {noun} {name} to {person}.",),
    "all": ("Give every {noun} that is {state} and not {person}'s to {person}.",),
}


def arguments(words: Domain) -> dict:
    return {"state": {"type": "string", "enum": list(words.words["steps"])}}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    states = [state for state, after in words.words["steps"].items() if after]
    return {
        name: {"state": rng.choice(states), "owner": rng.choice(PEOPLE), "days": rng.randrange(1, 60)}
        for name in rng.sample(IDS, size)
    }


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    name, person = rng.choice(sorted(state)), rng.choice(PEOPLE)
    ticket = state[name]
    asked = {"name": name, "person": person}
    yield Option("state", asked, [("read", (name,))], ticket["state"])
    yield Option("owner", asked, [("read", (name,))], ticket["owner"])
    if after := words.words["steps"][ticket["state"]]:
        status = rng.choice(after)
        yield Option("advance", {**asked, "state": status}, [("advance", (name, status))])
    if person != ticket["owner"]:
        yield Option("assign", asked, [("assign", (name, person))])
        found = [other for other in sorted(state) if state[other]["state"] == ticket["state"]]
        looks = [("find", (ticket["state"],)), *(("read", (other,)) for other in found)]
        given = [("assign", (other, person)) for other in found if state[other]["owner"] != person]
        yield Option("all", {**asked, "state": ticket["state"]}, [*looks, *given])


DOMAINS = (
    domain(
        "orders",
        "order_show order_search order_advance order_assign",
        IDS,
        noun="order",
        a="an",
        steps=table(
            "paid: packed refunded; packed: shipped refunded; shipped: delivered; delivered: refunded; refunded:"
        ),
    ),
    domain(
        "bugs",
        "bug_show bug_search bug_move bug_assign",
        IDS,
        noun="bug",
        a="a",
        steps=table("new: open rejected; open: fixed rejected; fixed: open closed; closed: open; rejected:"),
    ),
    domain(
        "claims",
        "claim_view claim_find claim_decide claim_hand_over",
        IDS,
        noun="claim",
        a="a",
        steps=table("filed: checked; checked: granted denied; granted: settled; denied: filed; settled:"),
    ),
    domain(
        "repairs",
        "repair_show repair_list repair_update repair_give",
        IDS,
        noun="repair",
        a="a",
        steps=table("received: examined; examined: waiting mended; waiting: mended; mended: collected; collected:"),
    ),
    domain(
        "applications",
        "application_read application_filter application_step application_reassign",
        IDS,
        noun="application",
        a="an",
        steps=table(
            "sent: invited declined; invited: offered declined; offered: signed withdrawn; declined: sent; "
            "signed: ; withdrawn:"
        ),
    ),
    domain(
        "parcels",
        "parcel_trace parcel_in_state parcel_scan parcel_pass_on",
        IDS,
        noun="parcel",
        a="a",
        steps=table("accepted: sorted; sorted: loaded held; held: loaded; loaded: delivered sorted; delivered:"),
    ),
)
