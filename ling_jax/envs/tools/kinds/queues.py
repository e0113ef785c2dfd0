"""Lines in which somebody is first: {name: [person, …]}."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import Domain, Operation, Option, domain, others
from ling_jax.envs.tools.words import PEOPLE

WAITING = range(3, 6)  # our choice: in each line at the beginning


def read(words: Domain, state: KitState, name: str):
    return state, known(state, name, words.noun)


def join(words: Domain, state: KitState, name: str, person: str):
    if person in known(state, name, words.noun):
        raise ToolError(f"{person!r} is in {name!r} already")
    return _put(state, name, [*state[name], person])


def leave(words: Domain, state: KitState, name: str, person: str):
    return _put(state, name, _without(words, state, name, person))


def serve(words: Domain, state: KitState, name: str):
    if not known(state, name, words.noun):
        raise ToolError(f"nobody is in {name!r}")
    return {**state, name: state[name][1:]}, {"next": state[name][0]}


def front(words: Domain, state: KitState, name: str, person: str):
    return _put(state, name, [person, *_without(words, state, name, person)])


def _without(words: Domain, state: KitState, name: str, person: str) -> list[str]:
    if person not in known(state, name, words.noun):
        raise ToolError(f"{person!r} is not in {name!r}")
    return [other for other in state[name] if other != person]


def _put(state: KitState, name: str, line: list[str]):
    return {**state, name: line}, line


OPERATIONS = (
    Operation("read", read, "Who is in a {noun}, the first one first.", ("noun",), changes=False),
    Operation("join", join, "Puts {somebody} at the end of a {noun}.", ("noun", "person")),
    Operation("leave", leave, "Takes {somebody} out of a {noun}.", ("noun", "person")),
    Operation("serve", serve, "Takes the first one out of a {noun} and says who it was.", ("noun",)),
    Operation("front", front, "Moves {somebody} to the front of a {noun}.", ("noun", "person")),
)
DESTROYS = "leave"
PHRASES = {
    "first": ("Who is first in the {noun} {name}?", "Tell me who is next in the {noun} {name}."),
    "join": ("Put {person} into the {noun} {name}.", "Add {person} at the end of the {noun} {name}."),
    "leave": ("Take {person} out of the {noun} {name}.", "{person} is to leave the {noun} {name}."),
    "serve": ("Take the first one out of the {noun} {name} and tell me who it was.",),
    "front": ("Let {person} go to the front of the {noun} {name}.",),
    "last": ("Take the last one out of the {noun} {name}.",),
}


def arguments(words: Domain) -> dict:
    del words
    return {}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    return {name: rng.sample(_waiting(words), rng.choice(WAITING)) for name in rng.sample(words.names, size)}


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    name = rng.choice(sorted(state))
    line, look = state[name], ("read", (name,))
    for person in others(rng, _waiting(words), line):
        yield Option("join", {"name": name, "person": person}, [("join", (name, person))])
    if len(line) > 1:
        person = rng.choice(line[1:])
        asked = {"name": name, "person": person}
        yield Option("first", asked, [look], line[0])
        yield Option("serve", asked, [("serve", (name,))], line[0])
        yield Option("leave", asked, [("leave", (name, person))])
        yield Option("front", asked, [("front", (name, person))])
        yield Option("last", asked, [look, ("leave", (name, line[-1]))])


def _waiting(words: Domain) -> tuple[str, ...]:
    return words.words.get("waiting", PEOPLE)


SONGS = ("river", "echo", "ember", "tides", "arrow", "velvet", "north", "static", "mirage", "comet", "willow", "neon")
JOBS = ("report", "poster", "invoice", "thesis", "flyer", "menu", "map", "label", "letter", "chart", "form", "roster")
DOMAINS = (
    domain(
        "restaurant",
        "table_line table_wait table_leave table_seat table_first",
        ("terrace", "bar", "window", "garden", "lounge", "patio", "booth", "hall"),
        noun="line",
        somebody="a guest",
    ),
    domain(
        "printers",
        "print_jobs print_add print_delete print_next print_rush",
        ("lobby", "office", "cellar", "studio", "reception", "annex", "lab", "attic"),
        noun="printer",
        somebody="a job",
        waiting=JOBS,
        person_argument="job",
    ),
    domain(
        "playlists",
        "songs_of song_add song_remove song_play song_play_next",
        ("focus", "dinner", "gym", "sleep", "party", "road", "rain", "sunday"),
        noun="playlist",
        somebody="a song",
        waiting=SONGS,
        person_argument="song",
    ),
    domain(
        "callers",
        "calls_waiting call_enqueue call_drop call_take call_prefer",
        ("sales", "billing", "support", "returns", "repairs", "claims", "press", "legal"),
        noun="hotline",
        somebody="a caller",
    ),
    domain(
        "waiting_room",
        "patients_in patient_arrive patient_go patient_call patient_urgent",
        ("surgery", "dentist", "x-ray", "vaccines", "eyes", "skin", "heart", "blood"),
        noun="ward",
        somebody="a patient",
    ),
    domain(
        "runways",
        "flights_on flight_line_up flight_withdraw flight_release flight_prioritise",
        ("alpha", "bravo", "delta", "kilo", "lima", "oscar", "tango", "zulu"),
        noun="runway",
        somebody="a flight",
        waiting=("ab12", "ab21", "cd34", "cd43", "ef56", "ef65", "gh78", "gh87", "jk90", "jk99", "lm11", "lm17"),
        person_argument="flight",
    ),
)
