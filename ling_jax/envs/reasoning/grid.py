"""Things in a row of houses, zebra-like: `?abc pqr:a<b;b=p;r!3;pqr=` -> which of p, q and r is in each house.

A value is in one house, and each house has one value of a kind. Up to `SHORT` a clue is a few characters: a=p "in one
house", a!p "not in one house", a<p "somewhere left of", a>p "just left of", a~p "next to", a=2 "in house 2", a!2 "not
in house 2".
"""

import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.puzzle import choose_clues, draw_worded, puzzle_task, shuffled, without_superfluous
from ling_jax.envs.reasoning.puzzle import reset as reset
from ling_jax.envs.reasoning.puzzle import session as session
from ling_jax.envs.reasoning.puzzle import solution as solution
from ling_jax.envs.reasoning.puzzle import step as step

NAME = "grid"
SIZES = ((3, 1), (3, 2), (4, 2), (4, 3), (4, 4), (5, 3), (5, 4), (5, 5), (6, 5), (6, 6))  # (houses, kinds); our choice
DIFFICULTIES = range(1, len(SIZES) + 1)
SHORT = 3  # difficulty up to which a puzzle has no words
LETTERS = ("abcdef", "pqrstu")
KINDS = {
    "colour": ("red", "blue", "green", "white", "yellow", "black"),
    "pet": ("cat", "dog", "fish", "horse", "parrot", "snail"),
    "drink": ("tea", "milk", "juice", "water", "coffee", "cocoa"),
    "sport": ("chess", "golf", "judo", "rowing", "tennis", "polo"),
    "fruit": ("apple", "cherry", "fig", "lemon", "melon", "plum"),
    "tool": ("axe", "drill", "file", "hammer", "saw", "wrench"),
}
TOKENS_PER_LINE = 64  # our choice: a line of a worked solution has up to 50 characters

HOUSE = -1  # the kind of the houses themselves, whose places are known

Value = tuple[int, int]  # (kind, number)
Places = Mapping[Value, int]  # the house of each value
Masks = dict[Value, int]  # the houses where each value may be, a bit each


class Clue(NamedTuple):
    form: str  # of `FORMS`
    first: Value
    second: Value


class Grid(NamedTuple):
    houses: int
    kinds: int
    places: Places
    clues: Sequence[Clue]


class Rule(NamedTuple):
    """A clue with the houses that it leaves of one value, by the mask of the other."""

    clue: Clue
    of_first: Sequence[int]
    of_second: Sequence[int]


FORMS = {  # form -> (whether it holds of two houses, in characters, in words)
    "same": (lambda p, q: p == q, "{a}={b}", "The house with the {a} has the {b}"),
    "differ": (lambda p, q: p != q, "{a}!{b}", "The house with the {a} does not have the {b}"),
    "left": (lambda p, q: p < q, "{a}<{b}", "The {a} is somewhere to the left of the {b}"),
    "just_left": (lambda p, q: p + 1 == q, "{a}>{b}", "The {a} is in the house just to the left of the {b}"),
    "beside": (lambda p, q: abs(p - q) == 1, "{a}~{b}", "The {a} is in a house next to the {b}"),
}
OF_HOUSES = {"same": "The {a} is in house {b}", "differ": "The {a} is not in house {b}"}


def make_task(seed: int, difficulty: int) -> Task:
    """Houses and kinds by `SIZES`, and clues none of which could be left out."""
    if difficulty > SHORT:
        return draw_worded(NAME, seed, difficulty, DIFFICULTIES, _draw, _in_words)
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, lambda rng, _: _in_characters(rng, _draw(rng, difficulty)))


def holds(clue: Clue, places: Places) -> bool:
    """Whether a clue is true of an arrangement."""
    return FORMS[clue.form][0](places[clue.first], places[clue.second])


def solutions(houses: int, kinds: int, clues: Sequence[Clue]) -> Iterator[Places]:
    """All arrangements that fit the clues, one after the other."""
    for found in _search(_unknown(houses, kinds), _rules(clues, houses), _silent):
        yield {value: mask.bit_length() - 1 for value, mask in found.items()}


def _draw(rng: random.Random, difficulty: int) -> Grid:
    houses, kinds = SIZES[difficulty - 1]
    places = {(HOUSE, house): house for house in range(houses)}
    places |= {(k, n): house for k in range(kinds) for n, house in enumerate(shuffled(rng, range(houses)))}
    return Grid(houses, kinds, places, _draw_clues(rng, houses, kinds, places))


def _draw_clues(rng: random.Random, houses: int, kinds: int, places: Places) -> list[Clue]:
    pairs = [(a, b) for a in places for b in places if a != b and a[0] != HOUSE]
    pool = [Clue(form, a, b) for form in FORMS for a, b in pairs if _says_much(form, a, b)]
    pool = shuffled(rng, (clue for clue in pool if holds(clue, places)))

    def other(clues: Sequence[Clue]) -> Places | None:
        return next((found for found in solutions(houses, kinds, clues) if found != places), None)

    return without_superfluous(choose_clues(pool, other, holds), other)


def _says_much(form: str, a: Value, b: Value) -> bool:
    """Two values of one kind are in different houses anyway; what is symmetric is said one way."""
    if b[0] == HOUSE:
        return form in OF_HOUSES
    return a[0] < b[0] if form in OF_HOUSES else form != "beside" or a < b


def _unknown(houses: int, kinds: int) -> Masks:
    anywhere = {(kind, number): (1 << houses) - 1 for kind in range(kinds) for number in range(houses)}
    return {(HOUSE, house): 1 << house for house in range(houses)} | anywhere


def _rules(clues: Sequence[Clue], houses: int) -> list[Rule]:
    return [Rule(clue, *_support(clue.form, houses)) for clue in clues]


def _search(masks: Masks, rules: Sequence[Rule], note: Callable[[str, Any], None]) -> Iterator[Masks]:
    """The ways to put each value in one of its houses; `note(what, about)` is called for each step on the way."""
    if not _narrow(masks, rules, note):
        return
    undecided = [value for value, mask in masks.items() if mask & (mask - 1)]
    if not undecided:
        yield masks
        return
    value = min(undecided, key=lambda value: (masks[value].bit_count(), value))
    for house in _houses(masks[value]):
        note("try", (value, house))
        yield from _search(masks | {value: 1 << house}, rules, note)


def _narrow(masks: Masks, rules: Sequence[Rule], note: Callable[[str, Any], None]) -> bool:
    """Takes out houses, in place, until nothing takes out more; False where a value has none left."""
    changed = True
    while changed:
        changed = _apply_rules(masks, rules, note)
        changed = _take_placed(masks, note) or changed
        if not all(masks.values()):
            note("none", next(value for value, mask in masks.items() if not mask))
            return False
    return True


def _apply_rules(masks: Masks, rules: Sequence[Rule], note: Callable[[str, Any], None]) -> bool:
    """Whether a rule narrowed a value."""
    changed = False
    for clue, of_first, of_second in rules:
        _, first, second = clue
        before, beyond = masks[first], masks[second]
        now = before & of_first[beyond]
        then = beyond & of_second[now]
        if now != before:
            masks[first], changed = now, True
            note("clue", (clue, first, now))
        if then != beyond:
            masks[second], changed = then, True
            note("clue", (clue, second, then))
    return changed


def _take_placed(masks: Masks, note: Callable[[str, Any], None]) -> bool:
    """Whether values that are placed took their houses from another one of their kind."""
    placed: dict[int, dict[int, Value]] = {}  # kind -> mask -> value
    for value, mask in masks.items():
        if not mask & (mask - 1) and placed.setdefault(value[0], {}).setdefault(mask, value) != value:
            masks[value] = 0
            return True
    taken = {kind: sum(there) for kind, there in placed.items()}
    changed = False
    for value, mask in masks.items():
        lost = mask & taken.get(value[0], 0)
        if lost and mask & (mask - 1):
            masks[value], changed = mask & ~lost, True
            note("rest", (placed[value[0]][lost & -lost], value, mask & ~lost))
    return changed


@functools.cache
def _support(form: str, houses: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(houses of the first value that go with some of the second's, by the second's mask; and the other way round)."""
    test, of_first, of_second = FORMS[form][0], [], []
    for mask in range(1 << houses):
        there = _houses(mask)
        of_first.append(sum(1 << p for p in range(houses) if any(test(p, q) for q in there)))
        of_second.append(sum(1 << q for q in range(houses) if any(test(p, q) for p in there)))
    return tuple(of_first), tuple(of_second)


def _houses(mask: int) -> list[int]:
    return [house for house in range(mask.bit_length()) if mask >> house & 1]


def _silent(what: str, about: Any) -> None:
    """Notes nothing."""


def _said(clue: Clue, names: Mapping[Value, str], *, words: bool = False) -> str:
    _, characters, sentence = FORMS[clue.form]
    sentence = OF_HOUSES[clue.form] if clue.second[0] == HOUSE else sentence
    return (sentence if words else characters).format(a=names[clue.first], b=names[clue.second])


def _in_characters(rng: random.Random, grid: Grid) -> dict[str, Any]:
    names = {(kind, n): str(n + 1) if kind == HOUSE else LETTERS[kind][n] for kind, n in grid.places}
    asked, clues = rng.randrange(grid.kinds), shuffled(rng, grid.clues)
    groups = ["".join(_group(names, kind)) for kind in range(grid.kinds)]
    said = ";".join(_said(clue, names) for clue in clues)
    return _task(grid, clues, names, asked, f"?{' '.join(groups)}:{said};{groups[asked]}=")


def _in_words(rng: random.Random, grid: Grid) -> dict[str, Any]:
    chosen = [rng.sample(KINDS[kind], grid.houses) for kind in rng.sample(sorted(KINDS), grid.kinds)]
    names = {(kind, n): str(n + 1) if kind == HOUSE else chosen[kind][n] for kind, n in grid.places}
    asked, clues = rng.randrange(grid.kinds), shuffled(rng, grid.clues)
    prompt = "\n".join([
        f"There are {grid.houses} houses in a row, numbered from 1, the leftmost, to {grid.houses}. Each has one of "
        "each line:",
        *(f"- {', '.join(_group(names, kind))}" for kind in range(grid.kinds)),
        *(f"{i}. {_said(clue, names, words=True)}." for i, clue in enumerate(clues, 1)),
        f"In which order are these, from house 1 on: {', '.join(_group(names, asked))}? End with A: and the order, "
        "with commas.",
    ])  # fmt: skip
    return _task(grid, clues, names, asked, prompt)


def _task(grid: Grid, clues: Sequence[Clue], names: Mapping[Value, str], asked: int, prompt: str) -> dict[str, Any]:
    answer = ",".join(names[value] for value in sorted(grid.places, key=grid.places.get) if value[0] == asked)
    worked = list(_reason(grid.houses, grid.kinds, clues, names))
    return puzzle_task(prompt, answer, worked, TOKENS_PER_LINE * (len(worked) + 4))


def _group(names: Mapping[Value, str], kind: int) -> list[str]:
    return sorted(name for value, name in names.items() if value[0] == kind)


def _reason(houses: int, kinds: int, clues: Sequence[Clue], names: Mapping[Value, str]) -> Iterator[str]:
    """A line for each value whose houses a clue or a value that is placed narrows, and for each house that is tried."""
    lines: list[str] = []

    def note(what: str, about: Any) -> None:
        if what == "try":
            value, house = about
            lines.append(f"try {names[value]}@{house + 1}")
        elif what == "none":
            lines.append(f"{names[about]} nowhere")
        else:
            said, value, mask = about
            lines.append(f"{_said(said, names) if what == 'clue' else names[said]} so {names[value]}@{_numbers(mask)}")

    next(_search(_unknown(houses, kinds), _rules(clues, houses), note))
    return iter(lines)


def _numbers(mask: int) -> str:
    return "".join(str(house + 1) for house in _houses(mask))
