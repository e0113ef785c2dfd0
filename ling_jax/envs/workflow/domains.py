"""What the tables of a task are about: two tables whose rows belong to each other."""

import random
from typing import Any, NamedTuple

KEY, CATEGORY, NUMBER, DATE, LIST = "key", "category", "number", "date", "list"


class Table(NamedTuple):
    """Rows in order; a value is an integer in a column of numbers, and text in the others."""

    columns: dict[str, str]  # name -> what it holds
    rows: list[dict[str, Any]]

    def of(self, *kinds: str) -> list[str]:
        """The names of the columns of these kinds."""
        return [name for name, kind in self.columns.items() if kind in kinds]


class Domain(NamedTuple):
    """Events, each of which belongs to one of the things."""

    events: str  # the name of their table
    event: str  # of their key
    things: str
    thing: str
    numbers: tuple[str, str]  # of an event
    category: str  # of an event
    values: tuple[str, ...]
    date: str
    groups: str  # of a thing
    group_values: tuple[str, ...]
    number: str  # of a thing


DOMAINS = (
    Domain("orders", "order", "customers", "customer", ("amount", "pieces"), "item",
           ("lamp", "desk", "chair", "shelf", "rug"), "day", "city", ("Bonn", "Lyon", "Oslo", "Turin"), "credit"),
    Domain("loans", "loan", "readers", "reader", ("days", "fee"), "shelf",
           ("maps", "novels", "poems", "law"), "lent", "branch", ("north", "south", "harbour"), "limit"),
    Domain("trips", "trip", "drivers", "driver", ("km", "minutes"), "vehicle",
           ("van", "bus", "truck", "tram"), "date", "depot", ("east", "west", "mill"), "hours"),
    Domain("visits", "visit", "patients", "patient", ("minutes", "cost"), "ward",
           ("eyes", "heart", "skin", "bones"), "day", "insurer", ("alpha", "medic", "unity"), "age"),
    Domain("payments", "payment", "accounts", "account", ("cents", "rate"), "purpose",
           ("rent", "food", "travel", "tax"), "booked", "bank", ("Aldo", "Brink", "Cera"), "floor"),
    Domain("harvests", "harvest", "fields", "field", ("kilos", "workers"), "crop",
           ("oats", "rye", "beans", "flax"), "date", "soil", ("clay", "loam", "sand"), "acres"),
    Domain("repairs", "repair", "machines", "machine", ("minutes", "parts"), "fault",
           ("belt", "motor", "valve", "screen"), "opened", "hall", ("A", "B", "C", "D"), "power"),
    Domain("tickets", "ticket", "agents", "agent", ("replies", "hours"), "topic",
           ("login", "billing", "export", "crash"), "opened", "team", ("red", "green", "blue"), "load"),
    Domain("flights", "flight", "planes", "plane", ("seats", "delay"), "gate",
           ("A1", "B2", "C3", "D4"), "day", "maker", ("Argo", "Boreal", "Cirrus"), "range"),
    Domain("games", "game", "players", "player", ("points", "moves"), "opening",
           ("king", "rook", "pawn", "queen"), "played", "club", ("Elm", "Oak", "Pine"), "rank"),
)  # fmt: skip


def draw_things(rng: random.Random, domain: Domain, count: int) -> Table:
    """So many things, each with a key of its own."""
    columns = {domain.thing: KEY, domain.groups: CATEGORY, domain.number: NUMBER}
    keys = rng.sample(range(10, 99), count)
    rows = [
        {
            domain.thing: f"{domain.thing[0]}{key}",
            domain.groups: rng.choice(domain.group_values),
            domain.number: rng.randint(1, 99),
        }
        for key in keys
    ]
    return Table(columns, rows)


def draw_events(rng: random.Random, domain: Domain, things: Table, count: int) -> Table:
    """So many events; one in eight belongs to a thing that is not in the other table."""
    first, second = domain.numbers
    columns = {domain.event: KEY, domain.thing: KEY, domain.category: CATEGORY}
    columns |= {first: NUMBER, second: NUMBER, domain.date: DATE}
    known, number, letter = [row[domain.thing] for row in things.rows], rng.randint(1000, 8000), domain.thing[0]
    rows = []
    for _ in range(count):
        number += rng.randint(1, 5)
        thing = rng.choice(known) if rng.random() < 7 / 8 else f"{letter}{rng.randint(100, 120)}"
        rows.append(
            {
                domain.event: f"{domain.event[0]}{number}",
                domain.thing: thing,
                domain.category: rng.choice(domain.values),
                first: rng.randint(1, 2000),
                second: rng.randint(1, 60),
                domain.date: f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
            }
        )
    return Table(columns, rows)


def draw_jobs(rng: random.Random, count: int) -> Table:
    """Jobs, each after up to two of those before it."""
    names = [f"j{number}" for number in rng.sample(range(10, 99), count)]
    rows = [
        {
            "job": name,
            "minutes": rng.randint(5, 90),
            "after": " ".join(sorted(rng.sample(names[:i], min(i, rng.randint(0, 2))))),
        }
        for i, name in enumerate(names)
    ]
    return Table({"job": KEY, "minutes": NUMBER, "after": LIST}, rows)
