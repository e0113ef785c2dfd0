"""Things that are on or off and have a level: {name: {"power": "on" | "off", "level": number}}."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import Domain, Operation, Option, domain
from ling_jax.envs.tools.words import LETTERS

POWERS = ("on", "off")


def read(words: Domain, state: KitState, name: str):
    return state, known(state, name, words.noun)


def find(words: Domain, state: KitState, power: str):
    del words
    return state, [name for name in sorted(state) if state[name]["power"] == power]


def switch(words: Domain, state: KitState, name: str, power: str):
    if known(state, name, words.noun)["power"] == power:
        raise ToolError(f"{name!r} is {power} already")
    return _put(state, name, {"power": power})


def turn(words: Domain, state: KitState, name: str, level: int):
    if known(state, name, words.noun)["power"] == "off":
        raise ToolError(f"{name!r} is off; switch it on before")
    return _put(state, name, {"level": level})


def _put(state: KitState, name: str, changed: KitState):
    return {**state, name: {**state[name], **changed}}, {name: changed}


OPERATIONS = (
    Operation("read", read, "Whether a {noun} is on, and its {level}.", ("noun",), changes=False),
    Operation("find", find, "Every {noun} that is on, or off.", ("power",), changes=False),
    Operation("switch", switch, "Switches a {noun} on or off.", ("noun", "power")),
    Operation("turn", turn, "Sets the {level} of a {noun} that is on.", ("noun", "level")),
)
DESTROYS = "switch"
PHRASES = {
    "read": ("What is the {unit} of the {noun} {name}?",),
    "switch": ("Switch the {noun} {name} {power}.",),
    "turn": ("Set the {unit} of the {noun} {name}, which is on, to {level}.",),
    "wake": ("Switch the {noun} {name} on, with a {unit} of {level}.",),
    "raise": ("Raise the {unit} of the {noun} {name}, which is on, by {more}.",),
    "all": ("Switch every {noun} off that is on.",),
}
TERSE = {"switch": ("turn {name} {power}",), "turn": ("set {name} {level}",)}


def arguments(words: Domain) -> dict:
    low, high = words.words["bounds"]
    level = {"type": "integer", "minimum": low, "maximum": high}
    return {"power": {"type": "string", "enum": list(POWERS)}, "level": level}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    low, high = words.words["bounds"]
    names = rng.sample(words.names, size)
    return {name: {"power": rng.choice(POWERS), "level": rng.randrange(low, high)} for name in names}


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    low, high = words.words["bounds"]
    name = rng.choice(sorted(state))
    device, look = state[name], ("read", (name,))
    level = rng.choice([level for level in range(low, high + 1) if level != device["level"]])
    asked = {"name": name, "level": level}
    yield Option("read", {"name": name}, [look], str(device["level"]))
    other = POWERS[device["power"] == "on"]
    yield Option("switch", {"name": name, "power": other}, [("switch", (name, other))])
    if device["power"] == "off":
        yield Option("wake", asked, [("switch", (name, "on")), ("turn", (name, level))])
    else:
        yield Option("turn", asked, [("turn", (name, level))])
        running = [other for other in sorted(state) if state[other]["power"] == "on"]
        yield Option("all", {}, [("find", ("on",)), *(("switch", (other, "off")) for other in running)])
        if device["level"] < high:
            more = rng.randint(1, high - device["level"])
            yield Option("raise", {"name": name, "more": more}, [look, ("turn", (name, device["level"] + more))])


ROOMS = ("kitchen", "hall", "attic", "cellar", "bedroom", "study", "porch", "garage", "bath", "nursery")


def _devices(name: str, tools: str, noun: str, unit: str, bounds: tuple[int, int], names=ROOMS, **words) -> Domain:
    return domain(name, tools, names, noun=noun, unit=unit, level=unit, level_argument="level", bounds=bounds, **words)


DOMAINS = (
    _devices("dials", "peek which turn set", "name", "level", (0, 99), LETTERS, phrases=TERSE),
    _devices("lamps", "lamp_state lamps_that_are lamp_switch lamp_dim", "lamp", "brightness", (0, 100)),
    _devices("heaters", "heater_state heaters_that_are heater_switch heater_set", "heater", "temperature", (5, 30)),
    _devices("speakers", "speaker_state speakers_that_are speaker_switch speaker_volume", "speaker", "volume", (0, 40)),
    _devices("fans", "fan_state fans_that_are fan_switch fan_speed", "fan", "speed", (1, 9)),
    _devices(
        "pumps",
        "pump_state pumps_that_are pump_switch pump_pressure",
        "pump",
        "pressure",
        (10, 90),
        ("p1", "p2", "p3", "p4", "p11", "p12", "p21", "p22"),
    ),
    _devices(
        "ovens",
        "oven_state ovens_that_are oven_switch oven_heat",
        "oven",
        "heat",
        (50, 280),
        ("left", "right", "upper", "lower", "stone", "pizza", "bread", "spare"),
    ),
)
