"""Who may use what: {name: [person, …]}, the people in alphabetical order."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import Domain, Operation, Option, domain, others
from ling_jax.envs.tools.words import PEOPLE

ALLOWED = range(2, 6)  # our choice: people of each thing at the beginning
FEW = 10  # people who are known here, so that the same one is found at several things


def read(words: Domain, state: KitState, name: str):
    return state, known(state, name, words.noun)


def find(words: Domain, state: KitState, person: str):
    del words
    return state, [name for name in sorted(state) if person in state[name]]


def grant(words: Domain, state: KitState, name: str, person: str):
    if person in known(state, name, words.noun):
        raise ToolError(f"{person!r} has {name!r} already")
    return _put(state, name, [*state[name], person])


def revoke(words: Domain, state: KitState, name: str, person: str):
    if person not in known(state, name, words.noun):
        raise ToolError(f"{person!r} does not have {name!r}")
    return _put(state, name, [other for other in state[name] if other != person])


def _put(state: KitState, name: str, people: list[str]):
    return {**state, name: sorted(people)}, sorted(people)


OPERATIONS = (
    Operation("read", read, "Who is allowed to use a {noun}.", ("noun",), changes=False),
    Operation("find", find, "Every {noun} that a person is allowed to use.", ("person",), changes=False),
    Operation("grant", grant, "Allows a person to use a {noun}.", ("noun", "person")),
    Operation("revoke", revoke, "Takes a {noun} away from a person.", ("noun", "person")),
)
DESTROYS = "revoke"
PHRASES = {
    "count": ("How many people have the {noun} {name}?",),
    "grant": ("Give {person} the {noun} {name}.", "{person} needs the {noun} {name}."),
    "revoke": ("Take the {noun} {name} away from {person}.", "{person} is not to have the {noun} {name} any more."),
    "all": ("Take every {noun} away from {person}.", "{person} has left: remove every {noun} of theirs."),
    "same": ("Give {person} every {noun} that {other} has and {person} does not.",),
}


def arguments(words: Domain) -> dict:
    del words
    return {}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    people = rng.sample(PEOPLE, FEW)
    return {name: sorted(rng.sample(people, rng.choice(ALLOWED))) for name in rng.sample(words.names, size)}


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    del words
    name = rng.choice(sorted(state))
    people = sorted({person for allowed in state.values() for person in allowed})
    yield Option("count", {"name": name}, [("read", (name,))], str(len(state[name])))
    for person in others(rng, PEOPLE, state[name]):
        yield Option("grant", {"name": name, "person": person}, [("grant", (name, person))])
    if state[name]:
        person = rng.choice(state[name])
        yield Option("revoke", {"name": name, "person": person}, [("revoke", (name, person))])
        has = [other for other in sorted(state) if person in state[other]]
        yield Option("all", {"person": person}, [("find", (person,)), *(("revoke", (n, person)) for n in has)])
        for other in others(rng, people, [person]):
            new = [thing for thing in sorted(state) if other in state[thing] and thing not in has]
            if new:
                looks = [("find", (other,)), ("find", (person,))]
                given = [("grant", (thing, person)) for thing in new]
                yield Option("same", {"person": person, "other": other}, [*looks, *given])


DOMAINS = (
    domain(
        "shares",
        "share_members share_search share_grant share_revoke",
        ("budget", "photos", "drafts", "taxes", "hiring", "roadmap", "contracts", "archive", "designs", "minutes"),
        noun="folder",
    ),
    domain(
        "doors",
        "door_list door_keys_of door_allow door_block",
        ("lab", "roof", "vault", "garage", "workshop", "server", "kitchen", "gym", "storage", "lobby"),
        noun="door",
    ),
    domain(
        "repositories",
        "repo_members repo_find repo_add_member repo_remove_member",
        ("parser", "kernel", "website", "mobile", "infra", "docs", "billing", "search", "engine", "fonts"),
        noun="repository",
    ),
    domain(
        "lists",
        "list_readers list_of_reader list_subscribe list_unsubscribe",
        ("news", "jobs", "alumni", "chess", "films", "garden", "cycling", "poetry", "opera", "hiking"),
        noun="mailing list",
    ),
    domain(
        "lockers",
        "locker_holders locker_find locker_assign locker_take_back",
        ("l11", "l12", "l21", "l22", "l31", "l32", "l41", "l42", "l51", "l52"),
        noun="locker",
    ),
    domain(
        "channels",
        "channel_users channel_search channel_invite channel_kick",
        ("general", "random", "release", "oncall", "design", "sales", "standup", "lunch", "music", "books"),
        noun="channel",
    ),
)
