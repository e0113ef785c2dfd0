"""Names that nobody knows, and the words that facts are made of."""

import itertools
import random

_FIRST = ("Ada", "Bram", "Cora", "Dario", "Elin", "Femi", "Gero", "Hana", "Ivo", "Juna", "Kaspar", "Lien",
          "Milo", "Nadia", "Orla", "Pavel", "Quirin", "Runa", "Silas", "Tilda", "Ugo", "Vera", "Wim", "Yara",
          "Zeno")  # fmt: skip
_LAST_START = ("Bar", "Cal", "Dren", "El", "Fal", "Gor", "Hes", "Jar", "Kor", "Lam", "Mer", "Nor", "Ost", "Pel")
_LAST_END = ("bek", "dane", "feld", "gard", "holt", "inger", "kamp", "lund", "mark", "nova", "rath", "sen", "tov")
_TOWN_START = ("Ash", "Bren", "Cold", "Dun", "Elm", "Fen", "Glen", "Hol", "Iver", "Karst", "Lang", "Mal", "Nord",
               "Oster", "Pend", "Ravens", "Stein", "Tor", "Vel", "Wester")  # fmt: skip
_TOWN_END = ("brook", "by", "dale", "ford", "haven", "loch", "mere", "ness", "port", "stad", "vale", "wick")
_FIRM = ("Amber", "Beacon", "Cedar", "Drake", "Ember", "Falcon", "Garnet", "Heron", "Indigo", "Juniper", "Kestrel",
         "Lark", "Maple", "Nimbus", "Onyx", "Pioneer", "Quartz", "Raven", "Sable", "Tundra")  # fmt: skip
_FIRM_END = ("Works", "Brothers", "Union", "House", "and Daughters", "Partners")
_CODE = ("Acorn", "Basalt", "Comet", "Delta", "Echo", "Flint", "Glacier", "Harbour", "Iris", "Jasper", "Krill",
         "Lotus", "Meteor", "Nectar", "Orchid", "Prism", "Quill", "Ripple", "Saffron", "Topaz")  # fmt: skip
_MEETING_END = ("council", "forum", "hearing", "panel", "session", "summit")
_MAIL_END = ("delivery", "locker", "order", "permit", "refund", "voucher")
_RIVER_START = ("Al", "Bor", "Cher", "Dow", "Esk", "Ful", "Gar", "Hum", "Lor", "Nith")
_RIVER_END = ("a", "en", "is", "ow", "une")

CRAFTS = ("glazier", "baker", "surveyor", "printer", "tailor", "botanist", "welder", "potter", "notary", "diver")
INSTRUMENTS = {
    "string": ("cello", "harp", "lute", "viola"),
    "wind": ("bassoon", "clarinet", "flute", "oboe"),
    "percussion": ("gong", "marimba", "timpani", "xylophone"),
}
GOODS = ("clocks", "bricks", "sails", "lenses", "pumps", "paper", "ropes", "boots", "kites", "locks")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
TOPICS = ("water", "traffic", "schools", "taxes", "forests", "housing", "energy", "tourism")
REASONS = ("an invoice", "a key", "a sample", "a contract", "a complaint", "a recipe", "a map", "a deposit")
RIVERS = tuple(f"{start}{end}" for start, end in itertools.product(_RIVER_START, _RIVER_END))

NAMES = {
    "person": tuple(f"{first} {start}{end}" for first, start, end in itertools.product(_FIRST, _LAST_START, _LAST_END)),
    "company": tuple(f"{word} {other} {end}" for word, other, end in itertools.product(_FIRM, _CODE, _FIRM_END)),
    "town": tuple(f"{start}{end}" for start, end in itertools.product(_TOWN_START, _TOWN_END)),
    "meeting": tuple(f"{word} {other} {end}" for word, other, end in itertools.product(_CODE, _FIRM, _MEETING_END)),
    "mail": tuple(f"{word} {other} {end}" for word, other, end in itertools.product(_CODE, _FIRM, _MAIL_END)),
}


def draw_names(rng: random.Random, kind: str, count: int) -> list[str]:
    """`count` different names, of which each shares a part with many others."""
    return rng.sample(NAMES[kind], count)
