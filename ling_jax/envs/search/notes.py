"""The smallest universes, for models of any size: notes of three words, `ana room 17`, and `?ana boss room=`.

The prompt has no schemas: there is one tool, and a small model learns it from examples. A search shows the best note.
"""

import random

from ling_jax.envs.search.index import Document
from ling_jax.envs.search.library import Desk
from ling_jax.envs.tools.call import NOUN, Call, ToolError, tool

APP = "notes"
NAMES = (
    "ada", "ana", "ben", "bo", "cleo", "dan", "eva", "eli", "finn", "fay", "gus", "gil", "hugo", "hal", "ines", "ivo",
    "jun", "joy", "kim", "kai", "lea", "leo", "max", "mia", "nia", "ned", "otto", "ole", "pia", "pam", "ruth", "tom",
)  # fmt: skip
PEOPLE = 12  # of a universe: our choice
LINKS = ("boss", "mate")
FACTS = ("age", "bus", "code", "desk", "gate", "lane", "room", "team")
NUMBERS = range(10, 100)  # our choice: so many that a guess is seldom right


def search(desk: Desk, query: str):
    (index,) = desk.library.indices.values()
    found = index.ranked(query)
    if not found:
        raise ToolError("nothing")  # short, as all that a small model reads
    return Desk(desk.library, desk.read | {found[0].id}), found[0].text


SEARCH = tool(search, "The note that fits the words best.", {"query": NOUN}, changes=False)

Notes = dict[str, dict[str, str]]  # person -> word -> number or other person


def draw_notes(rng: random.Random) -> Notes:
    """A boss, a mate and eight numbers of everybody."""
    notes, people = {}, rng.sample(NAMES, PEOPLE)
    for name in people:
        others = [other for other in people if other != name]
        notes[name] = {link: rng.choice(others) for link in LINKS} | {f: str(rng.choice(NUMBERS)) for f in FACTS}
    return notes


def draw_path(rng: random.Random, notes: Notes, hops: int) -> tuple[list[str], list[str]]:
    """(words of a path, the people along it) with so many links before a fact; nobody is on it twice."""
    people, words = [rng.choice(list(notes))], []
    while len(words) < hops:
        links = [link for link in LINKS if notes[people[-1]][link] not in people]
        if not links:
            return draw_path(rng, notes, hops)
        words.append(rng.choice(links))
        people.append(notes[people[-1]][words[-1]])
    return [*words, rng.choice(FACTS)], people


def ask(people: list[str], words: list[str]) -> str:
    """The request: who it begins with, and the path."""
    return f"?{people[0]} {' '.join(words)}="


def solve(people: list[str], words: list[str]) -> list[Call]:
    """A search a word."""
    return [{"name": SEARCH.name, "arguments": {"query": f"{p} {w}"}} for p, w in zip(people, words, strict=True)]


def write_documents(notes: Notes) -> list[Document]:
    """A document a note."""
    written = [(name, word, value) for name, known in notes.items() for word, value in known.items()]
    return [Document(f"n{i}", APP, name, f"{name} {word} {value}") for i, (name, word, value) in enumerate(written)]
