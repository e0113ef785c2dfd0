"""All of a task by its seed and difficulty: universe, request, answer, and calls that lead to it."""

import contextlib
import functools
import random
from typing import NamedTuple

from ling_jax.envs.search import notes
from ling_jax.envs.search.fields import KINDS
from ling_jax.envs.search.library import Library, make_library
from ling_jax.envs.search.question import answers, ask, kinds
from ling_jax.envs.search.solver import solve
from ling_jax.envs.search.synthesis import Level, Unsuitable, draw_question
from ling_jax.envs.search.universe import draw_universe, write_documents
from ling_jax.envs.tools.call import Call

NOTES = {1: 0, 2: 1, 3: 2}  # difficulty -> links, in universes of notes
LEVELS = {  # our choice: from one that a small model may learn to chains of sixty calls
    4: Level(size=12, hops=0, back=0, constraints=0, vague=0, linked=0, near_misses=0),
    5: Level(size=24, hops=2, back=0, constraints=0, vague=0, linked=0, near_misses=0),
    6: Level(size=40, hops=2, back=0, constraints=2, vague=0, linked=0, near_misses=2),
    7: Level(size=60, hops=3, back=0, constraints=3, vague=1, linked=0, near_misses=3),
    8: Level(size=80, hops=4, back=1, constraints=3, vague=1, linked=0, near_misses=4),
    9: Level(size=100, hops=5, back=1, constraints=3, vague=1, linked=1, near_misses=6),
    10: Level(size=140, hops=6, back=2, constraints=4, vague=2, linked=1, near_misses=8),
    11: Level(size=180, hops=7, back=2, constraints=4, vague=2, linked=1, near_misses=10),
    12: Level(size=240, hops=8, back=3, constraints=4, vague=2, linked=2, near_misses=12),
}
DRAWS = 1000  # of a universe before none is thought to be suitable
KEPT = 64  # libraries; a group's answers are to one task


class Quest(NamedTuple):
    """A request, and what only the tools know."""

    request: str
    accepted: tuple[str, ...]  # the answer, then its other names
    calls: tuple[Call, ...]
    evidence: str  # id of the document that holds the answer
    library: Library


@functools.lru_cache(KEPT)
def quest(seed: int, difficulty: int) -> Quest:
    """The quest of a seed, always the same. What makes no good question is drawn again."""
    rng = random.Random(f"search/{difficulty}/{seed}")
    if difficulty in NOTES:
        return _of_notes(rng, NOTES[difficulty])
    for _ in range(DRAWS):
        with contextlib.suppress(Unsuitable):
            return _of_universe(rng, LEVELS[difficulty])
    raise ValueError(f"search: none of {DRAWS} universes of difficulty {difficulty} has a question with one answer")


def _of_notes(rng: random.Random, hops: int) -> Quest:
    known = notes.draw_notes(rng)
    words, people = notes.draw_path(rng, known, hops)
    library = make_library(notes.write_documents(known))
    last = f"{people[-1]} {words[-1]} "
    (evidence,) = (document.id for document in library.documents.values() if document.text.startswith(last))
    answer = known[people[-1]][words[-1]]
    return Quest(notes.ask(people, words), (answer,), tuple(notes.solve(people, words)), evidence, library)


def _of_universe(rng: random.Random, level: Level) -> Quest:
    universe = draw_universe(rng, level.size)
    question, chain = draw_question(rng, universe, level)
    documents = write_documents(rng, universe)
    library = make_library(documents)
    calls = solve(universe, library, question, chain)
    app = KINDS[kinds(question)[-1]].fields[question.asked].app
    (evidence,) = (each.id for each in documents if (each.app, each.title) == (app, chain[-1]))
    (answer,) = answers(universe, question)
    names = (f"river {answer}",) if question.asked == "river" else ()
    return Quest(ask(question), (str(answer), *names), tuple(calls), evidence, library)
