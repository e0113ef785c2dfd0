"""Things that are booked by the hour: {name: {"day hour": person}}."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import ARGUMENTS, HOURS, Domain, Operation, Option, domain
from ling_jax.envs.tools.words import DAYS, PEOPLE

BOOKED = 3  # our choice: hours of each thing at the beginning


def read(words: Domain, state: KitState, name: str):
    return state, known(state, name, words.noun)


def book(words: Domain, state: KitState, name: str, day: str, hour: int, person: str):
    booked, slot = known(state, name, words.noun), f"{day} {hour}"
    if slot in booked:
        raise ToolError(f"{name!r} is taken on {slot}, by {booked[slot]!r}")
    return {**state, name: {**booked, slot: person}}, {slot: person}


def cancel(words: Domain, state: KitState, name: str, day: str, hour: int):
    left = dict(known(state, name, words.noun))
    if f"{day} {hour}" not in left:
        raise ToolError(f"{name!r} is not booked on {day} {hour}")
    return {**state, name: left}, {"cancelled": left.pop(f"{day} {hour}")}


def move(words: Domain, state: KitState, name: str, day: str, hour: int, new_day: str, new_hour: int):
    freed, cancelled = cancel(words, state, name, day, hour)
    return book(words, freed, name, new_day, new_hour, cancelled["cancelled"])


OPERATIONS = (
    Operation("read", read, "When a {noun} is booked, and by whom.", ("noun",), changes=False),
    Operation("book", book, "Books a {noun} for an hour.", ("noun", "day", "hour", "person")),
    Operation("cancel", cancel, "Cancels the booking of a {noun}.", ("noun", "day", "hour")),
    Operation("move", move, "Moves a booking to another hour.", ("noun", "day", "hour", "new_day", "new_hour")),
)
DESTROYS = "cancel"
PHRASES = {
    "read": ("Who has booked the {noun} {name} on {day} at {hour}?",),
    "book": (
        "Book the {noun} {name} for {person} on {day} at {hour}.",
        "{person} needs the {noun} {name} on {day} at {hour}.",
    ),
    "cancel": ("Cancel the booking of the {noun} {name} on {day} at {hour}.",),
    "drop": ("Cancel what {person} has booked of the {noun} {name}.",),
    "move": ("Move the booking of the {noun} {name} from {day} at {hour} to {new_day} at {new_hour}.",),
}


def arguments(words: Domain) -> dict:
    del words
    return {"new_day": ARGUMENTS["day"], "new_hour": ARGUMENTS["hour"]}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    slots = [f"{day} {hour}" for day in DAYS for hour in HOURS]
    return {
        name: dict(zip(rng.sample(slots, BOOKED), rng.sample(PEOPLE, BOOKED), strict=True))
        for name in rng.sample(words.names, size)
    }


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    del words
    name = rng.choice(sorted(state))
    booked = state[name]
    day, hour = rng.choice([(day, hour) for day in DAYS for hour in HOURS if f"{day} {hour}" not in booked])
    person = rng.choice([person for person in PEOPLE if person not in booked.values()])
    values = {"name": name, "day": day, "hour": hour, "person": person}
    yield Option("book", values, [("book", (name, day, hour, person))])
    if booked:
        old_day, old_hour, has = _a_booking(rng, booked)
        old = {"name": name, "day": old_day, "hour": old_hour, "person": has}
        moved = ("move", (name, old_day, old_hour, day, hour))
        yield Option("read", old, [("read", (name,))], has)
        yield Option("cancel", old, [("cancel", (name, old_day, old_hour))])
        yield Option("drop", old, [("read", (name,)), ("cancel", (name, old_day, old_hour))])
        yield Option("move", {**old, "new_day": day, "new_hour": hour}, [moved])


def _a_booking(rng: random.Random, booked: KitState) -> tuple[str, int, str]:
    slot = rng.choice(sorted(booked))
    day, hour = slot.split()
    return day, int(hour), booked[slot]


DOMAINS = (
    domain(
        "rooms",
        "room_bookings room_book room_cancel room_move",
        ("blue", "green", "red", "attic", "cellar", "library", "garden", "corner", "glass", "long"),
        noun="room",
    ),
    domain(
        "courts",
        "court_times court_reserve court_give_back court_change",
        ("centre", "east", "west", "clay", "grass", "indoor", "roof", "park", "lake", "school"),
        noun="court",
    ),
    domain(
        "clinic",
        "doctor_schedule appointment_make appointment_cancel appointment_move",
        ("adler", "bosch", "curie", "duval", "ekman", "fuchs", "gauss", "holm", "ivers", "jung"),
        noun="doctor",
    ),
    domain(
        "salon",
        "stylist_day stylist_book stylist_cancel stylist_move",
        ("alma", "bruno", "celia", "dario", "elsa", "fritz", "gina", "henk", "ivo", "julia"),
        noun="stylist",
    ),
    domain(
        "instruments",
        "instrument_use instrument_book instrument_free instrument_shift",
        ("laser", "scope", "centrifuge", "oven", "printer", "spectrometer", "freezer", "press", "lathe", "scanner"),
        noun="instrument",
    ),
    domain(
        "cars",
        "car_plan car_reserve car_release car_reschedule",
        ("van", "coupe", "truck", "pickup", "sedan", "estate", "bus", "jeep", "roadster", "minibus"),
        noun="car",
    ),
)
