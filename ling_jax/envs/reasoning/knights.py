"""Knights, who always tell the truth, and knaves, who always lie: `?a:b-;b:a=b=` -> who is what.

Up to `SHORT` people a statement is a few characters: b+ is "b is a knight", b- "b is a knave", b=c "of one kind", b#c
"of two kinds", b|c "one at least is a knight", b&c "both are", and 2+ "exactly two of us are". Source of the kind of
puzzle: Smullyan 1978, "What Is the Name of This Book?".
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.puzzle import draw_worded, puzzle_task, shuffled
from ling_jax.envs.reasoning.puzzle import reset as reset
from ling_jax.envs.reasoning.puzzle import session as session
from ling_jax.envs.reasoning.puzzle import solution as solution
from ling_jax.envs.reasoning.puzzle import step as step

NAME = "knights"
DIFFICULTIES = range(2, 11)  # people; our choice
SHORT = 3  # people up to whom a puzzle has no words
PEOPLE = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jun")
LETTERS = "abcdefghij"
TOKENS_PER_LINE = 80  # our choice: a line of a worked solution has up to 70 characters
RULES = "Knights always tell the truth, knaves always lie, and everybody is one of the two."
ASKED = "Who are the knights? End with A: and their names in the order above, or the word nobody."

World = tuple[bool, ...]  # whether each person is a knight


class Statement(NamedTuple):
    speaker: int
    form: str  # of `FORMS`
    first: int  # a person; of "count" a number
    second: int = -1


class Puzzle(NamedTuple):
    world: World  # the one that is possible
    statements: Sequence[Statement]


FORMS = {  # form -> (whether it holds in a world, in characters, in words)
    "knight": (lambda w, a, b: w[a], "{a}+", "{A} is a knight"),
    "knave": (lambda w, a, b: not w[a], "{a}-", "{A} is a knave"),
    "same": (lambda w, a, b: w[a] == w[b], "{a}={b}", "{A} and {B} are of the same kind"),
    "differ": (lambda w, a, b: w[a] != w[b], "{a}#{b}", "{A} and {B} are of different kinds"),
    "either": (lambda w, a, b: w[a] or w[b], "{a}|{b}", "at least one of {A} and {B} is a knight"),
    "both": (lambda w, a, b: w[a] and w[b], "{a}&{b}", "{A} and {B} are both knights"),
    "count": (lambda w, a, b: sum(w) == a, "{n}+", "exactly {n} of us are knights"),
}
ALONE = ("knight", "knave", "count")  # forms about one person, or a number


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` people, whose statements leave one possibility."""
    if difficulty > SHORT:
        return draw_worded(NAME, seed, difficulty, DIFFICULTIES, _draw, _in_words)
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, lambda rng, _: _in_characters(rng, _draw(rng, difficulty)))


def worlds(people: int, statements: Sequence[Statement]) -> list[World]:
    """All possibilities in which knights tell the truth and knaves lie."""
    found = itertools.product((True, False), repeat=people)
    return [world for world in found if all(is_possible(world, each) for each in statements)]


def is_possible(world: World, statement: Statement) -> bool:
    """Whether the speaker would say this in a world."""
    return FORMS[statement.form][0](world, statement.first, statement.second) == world[statement.speaker]


def _draw(rng: random.Random, people: int) -> Puzzle:
    """Statements, each of which excludes something, until one world is left."""
    world = tuple(rng.random() < 0.5 for _ in range(people))
    left, statements = worlds(people, ()), []
    speakers = itertools.cycle(rng.sample(range(people), people))
    while len(left) > 1:
        statement = _draw_statement(rng, next(speakers), world)
        now = [each for each in left if is_possible(each, statement)]
        if len(now) < len(left):
            left = now
            statements.append(statement)
    return Puzzle(world, statements)


def _in_characters(rng: random.Random, puzzle: Puzzle) -> dict[str, Any]:
    statements = shuffled(rng, puzzle.statements)
    said = ";".join(f"{LETTERS[each.speaker]}:{_said(each)}" for each in statements)
    return _task(puzzle, statements, f"?{said}=", ",".join(_kinds(puzzle.world)))


def _in_words(rng: random.Random, puzzle: Puzzle) -> dict[str, Any]:
    statements = shuffled(rng, puzzle.statements)
    names = PEOPLE[: len(puzzle.world)]
    lines = [f'{PEOPLE[each.speaker]} says: "{_said(each, words=True)}."' for each in statements]
    prompt = "\n".join([f"{', '.join(names[:-1])} and {names[-1]} meet. {RULES}", *lines, ASKED])
    knights = [name for name, knight in zip(names, puzzle.world, strict=True) if knight]
    return _task(puzzle, statements, prompt, ",".join(knights) or "nobody")


def _task(puzzle: Puzzle, statements: Sequence[Statement], prompt: str, answer: str) -> dict[str, Any]:
    worked = list(_suppose(len(puzzle.world), statements, ()))
    return puzzle_task(prompt, answer, worked, TOKENS_PER_LINE * (len(worked) + 4))


def _draw_statement(rng: random.Random, speaker: int, world: World) -> Statement:
    """One that the speaker would make in this world; a knight says what holds, a knave what does not."""
    while True:
        form = rng.choice(list(FORMS))
        if form == "count":
            statement = Statement(speaker, form, rng.randrange(len(world) + 1))
        else:
            first, second = rng.sample(range(len(world)), 2)
            first, second = (min(first, second), max(first, second)) if form not in ALONE else (first, -1)
            statement = Statement(speaker, form, first, second)
        about = {statement.first} if form in ALONE else {statement.first, statement.second}
        if (form == "count" or about != {speaker}) and is_possible(world, statement):
            return statement


def _said(statement: Statement, *, words: bool = False) -> str:
    form = FORMS[statement.form][2 if words else 1]
    if statement.form == "count":
        return form.format(n=statement.first)
    a, b = statement.first, statement.second
    return form.format(a=LETTERS[a], b=LETTERS[b], A=PEOPLE[a], B=PEOPLE[b])


def _kinds(world: World) -> list[str]:
    return [f"{letter}{'+' if knight else '-'}" for letter, knight in zip(LETTERS, world, strict=False)]


def _suppose(people: int, statements: Sequence[Statement], known: World) -> Iterator[str]:
    """A line for each supposition, a person at a time, that a statement refutes, and one for what is left."""
    for knight in (True, False):
        now = (*known, knight)
        wrong = next((each for each in statements if not _may_be(people, now, each)), None)
        text = "".join(_kinds(now))
        if wrong is not None:
            yield f"{text} no {LETTERS[wrong.speaker]}:{_said(wrong)}"
        elif len(now) == people:
            yield f"{text} yes"
        else:
            yield from _suppose(people, statements, now)


def _may_be(people: int, known: World, statement: Statement) -> bool:
    """Whether some kinds of the people who are not known yet make a statement possible."""
    counts = statement.form == "count"  # then of the others only the number of knights matters, else nothing
    about = {statement.speaker} if counts else {statement.speaker, statement.first, statement.second}
    unknown = [person for person in range(len(known), people) if person in about]
    others = [person for person in range(len(known), people) if person not in about]
    for kinds in itertools.product((True, False), repeat=len(unknown)):
        for knights in range(len(others) + 1 if counts else 1):
            world = dict(zip(unknown, kinds, strict=True)) | {person: i < knights for i, person in enumerate(others)}
            if is_possible((*known, *(world[person] for person in range(len(known), people))), statement):
                return True
    return False
