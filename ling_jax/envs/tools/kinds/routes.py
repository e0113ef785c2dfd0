"""Lines of stops in order: {name: [stop, …]}."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import Domain, Operation, Option, domain, others

STOPS = range(4, 7)  # our choice: of each line at the beginning


def read(words: Domain, state: KitState, name: str):
    return state, known(state, name, words.noun)


def insert(words: Domain, state: KitState, name: str, stop: str, after: str):
    line, place = known(state, name, words.noun), _place(words, state, name, after)
    if stop in line:
        raise ToolError(f"{stop!r} is on {name!r} already")
    return _put(state, name, [*line[: place + 1], stop, *line[place + 1 :]])


def remove(words: Domain, state: KitState, name: str, stop: str):
    place = _place(words, state, name, stop)
    return _put(state, name, [*state[name][:place], *state[name][place + 1 :]])


def swap(words: Domain, state: KitState, name: str, stop: str, after: str):
    places, line = [_place(words, state, name, each) for each in (stop, after)], list(state[name])
    line[places[0]], line[places[1]] = after, stop
    return _put(state, name, line)


def _place(words: Domain, state: KitState, name: str, stop: str) -> int:
    line = known(state, name, words.noun)
    if stop not in line:
        raise ToolError(f"{stop!r} is not on {name!r}; there are {', '.join(line)}")
    return line.index(stop)


def _put(state: KitState, name: str, line: list[str]):
    return {**state, name: line}, line


OPERATIONS = (
    Operation("read", read, "The stops of a {noun} in order.", ("noun",), changes=False),
    Operation("insert", insert, "Adds a stop to a {noun}, behind another one.", ("noun", "stop", "after")),
    Operation("remove", remove, "Takes a stop out of a {noun}.", ("noun", "stop")),
    Operation("swap", swap, "Exchanges two stops of a {noun}.", ("noun", "stop", "other")),
)
DESTROYS = "remove"
PHRASES = {
    "count": ("How many stops does the {noun} {name} have?",),
    "next": ("Which stop of the {noun} {name} comes right after {stop}?",),
    "insert": ("Add the stop {new} to the {noun} {name}, right after {stop}.",),
    "remove": ("Take the stop {stop} out of the {noun} {name}.", "The {noun} {name} no longer stops at {stop}."),
    "last": ("Take the last stop out of the {noun} {name}.",),
    "end": ("Add the stop {new} at the end of the {noun} {name}.",),
    "swap": ("Exchange the stops {stop} and {other} of the {noun} {name}.",),
}


def arguments(words: Domain) -> dict:
    del words
    return {name: {"type": "string"} for name in ("stop", "after", "other")}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    return {name: rng.sample(words.words["stops"], rng.choice(STOPS)) for name in rng.sample(words.names, size)}


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    name = rng.choice(sorted(state))
    line, look = state[name], ("read", (name,))
    yield Option("count", {"name": name}, [look], str(len(line)))
    if len(line) < 2:
        return
    stop, other = rng.sample(line, 2)
    asked = {"name": name, "stop": stop, "other": other}
    yield Option("remove", asked, [("remove", (name, stop))])
    yield Option("last", asked, [look, ("remove", (name, line[-1]))])
    yield Option("swap", asked, [("swap", (name, stop, other))])
    place = rng.randrange(len(line) - 1)
    yield Option("next", {"name": name, "stop": line[place]}, [look], line[place + 1])
    for new in others(rng, words.words["stops"], line):
        yield Option("insert", {**asked, "new": new}, [("insert", (name, new, stop))])
        yield Option("end", {**asked, "new": new}, [look, ("insert", (name, new, line[-1]))])


PLACES = (
    *("market", "harbour", "station", "museum", "castle", "bridge", "school", "church", "mill", "forge"),
    *("tower", "theatre", "stadium", "hospital", "brewery", "chapel", "quarry", "meadow", "spring", "gate"),
)
HILLS = (
    *("hut", "pass", "ridge", "lake", "summit", "saddle", "gorge", "alp", "cave", "cliff"),
    *("pond", "crag", "ledge", "moor", "peak", "basin", "spur", "col", "tarn", "dell"),
)
COLOURS = ("red", "green", "blue", "amber", "violet", "black", "white", "grey")
DOMAINS = (
    domain("buses", "bus_stops bus_add_stop bus_drop_stop bus_swap_stops", COLOURS, noun="bus line", stops=PLACES),
    domain(
        "rounds",
        "round_list round_insert round_delete round_exchange",
        ("dawn", "morning", "noon", "evening", "night", "express", "bulky", "fresh"),
        noun="delivery round",
        stops=PLACES,
    ),
    domain(
        "tours",
        "tour_stops tour_add tour_cut tour_reorder",
        ("royal", "ghost", "roman", "food", "art", "river", "garden", "jazz"),
        noun="tour",
        stops=PLACES,
    ),
    domain(
        "hikes",
        "hike_show hike_extend hike_shorten hike_switch",
        ("north", "south", "glacier", "panorama", "smugglers", "family", "winter", "border"),
        noun="hike",
        stops=HILLS,
    ),
    domain(
        "patrols",
        "patrol_points patrol_include patrol_exclude patrol_flip",
        ("one", "two", "three", "four", "five", "six", "seven", "eight"),
        noun="patrol",
        stops=PLACES,
    ),
)
