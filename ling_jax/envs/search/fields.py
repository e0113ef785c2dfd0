"""What there is to know of each kind of thing: which document holds it, in which words, and how one asks for it."""

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ling_jax.envs.search import words

PAGES, CONTACTS, CALENDAR, MAILS = "search", "contacts", "calendar", "mails"  # the tool that finds a document
APPS = (PAGES, CONTACTS, CALENDAR, MAILS)


class Fact(NamedTuple):
    """A value. `asks` is "" for one with so few values that a guess is often right."""

    app: str
    sentence: str  # of {name} and {value}
    draw: Callable[[random.Random], Any]
    test: str  # what is said of a thing whose value is {}
    asks: str = ""


class Link(NamedTuple):
    """A value that is the name of another thing."""

    app: str
    sentence: str
    kind: str  # of the other thing
    noun: str  # what the other thing is to the first
    hop: str  # "that person …": from the thing to the other one
    back: str  # "a person …": from the other thing to this one


class Kind(NamedTuple):
    app: str  # where a thing that is described is looked for
    fields: Mapping[str, Fact | Link]


def _one_of(values) -> Callable[[random.Random], Any]:
    def draw(rng: random.Random) -> Any:
        return rng.choice(values)

    return draw


_INSTRUMENTS = tuple(name for group in words.INSTRUMENTS.values() for name in group)
_YEARS, _NUMBERS = _one_of(range(1930, 2000)), _one_of(range(1000, 10_000))

KINDS: dict[str, Kind] = {
    "person": Kind(PAGES, {
        "craft": Fact(PAGES, "{name} is a {value}.", _one_of(words.CRAFTS), "is a {}"),
        "instrument": Fact(PAGES, "{name} plays the {value}.", _one_of(_INSTRUMENTS), "plays the {}"),
        "born": Fact(PAGES, "The year of birth is {value}.", _YEARS, "was born in {}",
                     "In which year was that {} born?"),
        "home": Link(PAGES, "{name} grew up in {value}.", "town", "town", "grew up in a town", "grew up in that {}"),
        "teacher": Link(PAGES, "{name} learnt from {value}.", "person", "teacher", "learnt from a teacher",
                        "learnt from that {}"),
        "employer": Link(CONTACTS, "Works for {value},", "company", "company", "works for a company",
                         "works for that {}"),
        "extension": Fact(CONTACTS, "extension {value}.", _NUMBERS, "has the extension {}",
                          "What is the phone extension of that {}?"),
    }),
    "company": Kind(PAGES, {
        "goods": Fact(PAGES, "{name} makes {value}.", _one_of(words.GOODS), "makes {}"),
        "founded": Fact(PAGES, "It was founded in {value}.", _YEARS, "was founded in {}",
                        "In which year was that {} founded?"),
        "staff": Fact(PAGES, "It has {value} employees.", _NUMBERS, "has {} employees",
                      "How many employees does that {} have?"),
        "seat": Link(PAGES, "Its seat is {value}.", "town", "town", "has its seat in a town",
                     "has its seat in that {}"),
        "founder": Link(PAGES, "{value} founded it.", "person", "founder", "has a founder", "was founded by that {}"),
    }),
    "town": Kind(PAGES, {
        "river": Fact(PAGES, "{name} lies on the river {value}.", _one_of(words.RIVERS), "lies on the river {}",
                      "On which river does that {} lie?"),
        "fair": Fact(PAGES, "There is a fair in {value}.", _one_of(words.MONTHS), "has its fair in {}"),
        "height": Fact(PAGES, "The height is {value} metres.", _NUMBERS, "is {} metres high",
                       "How many metres high is that {}?"),
        "road": Link(PAGES, "The old road ends in {value}.", "town", "far town",
                     "has an old road that ends in a far town", "has an old road that ends in that {}"),
        "mayor": Link(PAGES, "{value} is the mayor.", "person", "mayor", "has a mayor", "has that {} as its mayor"),
    }),
    "meeting": Kind(CALENDAR, {
        "topic": Fact(CALENDAR, "A meeting on {value}.", _one_of(words.TOPICS), "is on {}"),
        "month": Fact(CALENDAR, "It is in {value}.", _one_of(words.MONTHS), "is in {}"),
        "seats": Fact(CALENDAR, "There are {value} seats.", _NUMBERS, "has {} seats",
                      "How many seats are there at that {}?"),
        "host": Link(CALENDAR, "The host is {value}.", "person", "host", "has a host", "has that {} as its host"),
        "venue": Link(CALENDAR, "It takes place in {value}.", "town", "town", "takes place in a town",
                      "takes place in that {}"),
    }),
    "mail": Kind(MAILS, {
        "reason": Fact(MAILS, "I write about {value}.", _one_of(words.REASONS), "is about {}"),
        "month": Fact(MAILS, "The deadline is in {value}.", _one_of(words.MONTHS), "has its deadline in {}"),
        "code": Fact(MAILS, "The code is {value}.", _NUMBERS, "holds the code {}", "Which code does that {} hold?"),
        "firm": Link(MAILS, "Please ask {value}.", "company", "company", "refers to a company",
                     "refers to that {}"),
        "sender": Link(MAILS, "Best wishes, {value}.", "person", "sender", "has a sender", "was sent by that {}"),
    }),
}  # fmt: skip


def _decade(said: str) -> Callable[[int], tuple[tuple, str]]:
    def around(year: int) -> tuple[tuple, str]:
        first = year - year % 10
        return tuple(range(first, first + 10)), said.format(first)

    return around


def _thousand(said: str) -> Callable[[int], tuple[tuple, str]]:
    def around(number: int) -> tuple[tuple, str]:
        low = number - number % 1000
        return tuple(range(low, low + 1000)), said.format(low, low + 999)

    return around


def _family(instrument: str) -> tuple[tuple, str]:
    (family,) = (name for name, group in words.INSTRUMENTS.items() if instrument in group)
    return words.INSTRUMENTS[family], f"plays a {family} instrument"


# field -> (values that fit, what is said), of a value
VAGUE: dict[str, Callable[[Any], tuple[tuple, str]]] = {
    "born": _decade("was born in the {}s"),
    "founded": _decade("was founded in the {}s"),
    "instrument": _family,
    "staff": _thousand("has {} to {} employees"),
    "height": _thousand("is {} to {} metres high"),
    "seats": _thousand("has {} to {} seats"),
}
