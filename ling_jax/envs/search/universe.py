"""A universe: things with facts and links to each other, and the documents in which all of it is written."""

import random
from collections.abc import Sequence
from typing import Any

from ling_jax.envs.search.fields import APPS, KINDS, PAGES, Fact
from ling_jax.envs.search.index import Document
from ling_jax.envs.search.words import draw_names

SHARES = {"person": 1.0, "company": 0.4, "town": 0.3, "meeting": 0.3, "mail": 0.4}  # of the size; our choice
MIN_COUNT = 4  # of each kind
LETTERS = dict(zip(APPS, "pcem", strict=True))  # with which the ids of an app's documents begin

Thing = dict[str, Any]  # field -> value; of links the name of the other thing
Universe = dict[str, dict[str, Thing]]  # kind -> name -> thing


def draw_universe(rng: random.Random, size: int) -> Universe:
    """`size` people and their share of all other things, with random facts and links; none links to itself."""
    names = {kind: draw_names(rng, kind, max(MIN_COUNT, round(size * share))) for kind, share in SHARES.items()}
    return {kind: {name: _draw_thing(rng, kind, name, names) for name in names[kind]} for kind in KINDS}


def write_documents(rng: random.Random, universe: Universe) -> list[Document]:
    """A document for each thing and each app that knows something of it; numbers are drawn, so ids say nothing."""
    written = [(app, kind, name) for kind in KINDS for name in universe[kind] for app in apps_of(kind)]
    rng.shuffle(written)
    ids = {(app, name): f"{LETTERS[app]}{number}" for number, (app, _, name) in enumerate(written)}
    return [Document(ids[app, name], app, name, _text(universe, ids, app, kind, name)) for app, kind, name in written]


def apps_of(kind: str) -> list[str]:
    """The apps that have a document of a thing of this kind."""
    used = {field.app for field in KINDS[kind].fields.values()}
    return [app for app in APPS if app in used]


def _draw_thing(rng: random.Random, kind: str, name: str, names: dict[str, Sequence[str]]) -> Thing:
    thing = {}
    for field, known in KINDS[kind].fields.items():
        if isinstance(known, Fact):
            thing[field] = known.draw(rng)
            continue
        thing[field] = rng.choice(names[known.kind])
        while thing[field] == name:
            thing[field] = rng.choice(names[known.kind])
    return thing


def _text(universe: Universe, ids: dict[tuple[str, str], str], app: str, kind: str, name: str) -> str:
    """The sentences of one document. Pages name the pages of what they link to; the other apps only its name."""
    sentences = []
    for field, known in KINDS[kind].fields.items():
        if known.app != app:
            continue
        value = universe[kind][name][field]
        linked = app == PAGES and not isinstance(known, Fact)
        value = f"{value} [{ids[PAGES, value]}]" if linked else value
        sentences.append(known.sentence.format(name=name, value=value))
    return " ".join(sentences)
