"""Questions made from their answer: a chain through a universe, described as vaguely as still fits one thing alone."""

import contextlib
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from ling_jax.envs.search.answers import stands_in
from ling_jax.envs.search.fields import KINDS, VAGUE, Fact, Link
from ling_jax.envs.search.question import NAME, Constraint, Hop, Question, all_fitting, answers, ask, candidates, fits
from ling_jax.envs.search.universe import Thing, Universe

DRAWS = 100  # of a chain through one universe; our choice


class Level(NamedTuple):
    """How hard questions are."""

    size: int  # people; there are about three times as many documents
    hops: int  # links to follow
    back: int  # of these against their direction
    constraints: int  # that describe the first thing; 0: its name is said
    vague: int  # of these without the exact value
    linked: int  # of these about a thing that it links to
    near_misses: int  # for each constraint: things that fit all the others


class Unsuitable(ValueError):
    """A draw that makes no good question; another one may."""


def draw_question(rng: random.Random, universe: Universe, level: Level) -> tuple[Question, list[str]]:
    """(question, the things along its chain). Things that are off the chain become near misses.

    Raises Unsuitable where the answer is not unique, or stands in the request.
    """
    question, chain = _draw_description(rng, universe, level)
    if level.constraints:
        _plant(rng, universe, question, chain, level.near_misses)
    _check(universe, question, chain)
    return question, chain


def _draw_description(rng: random.Random, universe: Universe, level: Level) -> tuple[Question, list[str]]:
    """(question, the things along its chain), which other things may fit, too."""
    for _ in range(DRAWS):
        kind = rng.choice(list(KINDS))
        start = rng.choice(list(universe[kind]))
        with contextlib.suppress(Unsuitable):
            hops, chain = _draw_hops(rng, universe, kind, start, level)
            constraints = _draw_constraints(rng, universe, kind, start, level)
            used = {each.path[-1] for each in (hops[-1].constraints if hops else constraints)}
            fields = KINDS[hops[-1].kind if hops else kind].fields
            asked = rng.choice(_choices(field for field, known in fields.items() if _is_asked(known, field, used)))
            return Question(kind, constraints, hops, asked), chain
    raise Unsuitable("no chain is long enough")


def _check(universe: Universe, question: Question, chain: list[str]) -> None:
    """Proves that everything but the chain fails, and that the request does not hold the answer."""
    if candidates(universe, question) != [{name} for name in chain]:
        raise Unsuitable("another chain fits")
    if len(found := answers(universe, question)) != 1 or stands_in(ask(question), map(str, found)):
        raise Unsuitable("the request holds the answer")
    if len(question.constraints) > 1:
        for left_out in question.constraints:
            others = [each for each in question.constraints if each != left_out]
            if len(all_fitting(universe, question.kind, others)) < 2:
                raise Unsuitable("a constraint is superfluous")


def _draw_hops(
    rng: random.Random, universe: Universe, kind: str, name: str, level: Level
) -> tuple[tuple[Hop, ...], list[str]]:
    """Hops from a thing on that never come back to one, and all things along them."""
    directions = [True] * (level.hops - level.back) + [False] * level.back
    rng.shuffle(directions)
    hops, chain = [], [name]
    for forward in directions:
        hop, name = _draw_hop(rng, universe, kind, chain, forward)
        hops.append(hop)
        chain.append(name)
        kind = hop.kind
    return tuple(hops), chain


def _draw_hop(rng: random.Random, universe: Universe, kind: str, chain: list[str], forward: bool) -> tuple[Hop, str]:
    if forward:
        links = [(field, known.kind) for field, known in KINDS[kind].fields.items() if isinstance(known, Link)]
        found = [(link, other, universe[kind][chain[-1]][link]) for link, other in links]
        link, other, name = rng.choice(_choices(each for each in found if each[2] not in chain))
        return Hop(link, other, True), name
    found = [
        (field, other, name)
        for other, known in KINDS.items()
        for field, link in known.fields.items()
        if isinstance(link, Link) and link.kind == kind
        for name, thing in universe[other].items()
        if thing[field] == chain[-1] and name not in chain
    ]
    link, other, name = rng.choice(_choices(found))
    rivals = [rival for rival in universe[other] if universe[other][rival][link] == chain[-1]]
    fields = _worded(universe[other][name], other)
    rng.shuffle(fields)
    constraints: list[Constraint] = []
    for field in fields:
        if len(rivals) == 1 and constraints:
            break
        constraints.append(_exact(universe, other, name, field))
        rivals = [rival for rival in rivals if fits(universe, other, rival, constraints[-1])]
    return Hop(link, other, False, tuple(constraints)), name


def _draw_constraints(
    rng: random.Random, universe: Universe, kind: str, name: str, level: Level
) -> tuple[Constraint, ...]:
    """What describes the first thing. One constraint at least has words that stand in its document."""
    if not level.constraints:
        return (Constraint((NAME,), (name,), f"has the name {name}", name),)
    fields = KINDS[kind].fields
    vague = _sample(rng, [field for field in fields if field in VAGUE], level.vague)
    linked = _sample(rng, [field for field, known in fields.items() if isinstance(known, Link)], level.linked)
    exact = [field for field in _worded(universe[kind][name], kind) if field not in vague]
    exact = _sample(rng, exact, max(1, level.constraints - len(vague) - len(linked)))
    found = [_exact(universe, kind, name, field) for field in exact]
    found += [_vague(universe, kind, name, field) for field in vague]
    found += [_linked(rng, universe, kind, name, link) for link in linked]
    return tuple(found)


def _exact(universe: Universe, kind: str, name: str, field: str) -> Constraint:
    value = universe[kind][name][field]
    return Constraint((field,), (value,), KINDS[kind].fields[field].test.format(value), str(value))


def _vague(universe: Universe, kind: str, name: str, field: str) -> Constraint:
    values, said = VAGUE[field](universe[kind][name][field])
    return Constraint((field,), values, said)


def _linked(rng: random.Random, universe: Universe, kind: str, name: str, link: str) -> Constraint:
    """A constraint on the thing that a link leads to."""
    known = KINDS[kind].fields[link]
    other = universe[kind][name][link]
    inner = _exact(universe, known.kind, other, rng.choice(_worded(universe[known.kind][other], known.kind)))
    return Constraint((link, *inner.path), inner.values, f"{known.hop} that {inner.said}")


def _plant(rng: random.Random, universe: Universe, question: Question, chain: list[str], count: int) -> None:
    """Makes `count` things for each constraint fit all the others."""
    free = [name for name in universe[question.kind] if name not in chain]
    rng.shuffle(free)
    for broken in question.constraints:
        for name in free[:count]:
            for constraint in question.constraints:
                _set(rng, universe, question.kind, name, constraint, constraint != broken)
        free = free[count:]


def _set(rng: random.Random, universe: Universe, kind: str, name: str, constraint: Constraint, good: bool) -> None:
    """Changes a thing so that it fits a constraint, or does not."""
    field, thing = constraint.path[0], universe[kind][name]
    known = KINDS[kind].fields[field]
    if isinstance(known, Link):
        inner = Constraint(constraint.path[1:], constraint.values, "")
        others = [other for other in universe[known.kind] if other != name]
        thing[field] = rng.choice(_choices(o for o in others if fits(universe, known.kind, o, inner) == good))
    elif good:
        thing[field] = rng.choice(constraint.values)
    else:
        while thing[field] in constraint.values:
            thing[field] = known.draw(rng)


def _is_asked(known: Fact | Link, field: str, used: set[str]) -> bool:
    return isinstance(known, Fact) and bool(known.asks) and field not in used


def _worded(thing: Thing, kind: str) -> list[str]:
    """The facts of a thing that are words, which its document can be found by."""
    fields = KINDS[kind].fields
    return [field for field, value in thing.items() if isinstance(fields[field], Fact) and isinstance(value, str)]


def _sample(rng: random.Random, fields: list[str], count: int) -> list[str]:
    return rng.sample(fields, max(0, min(count, len(fields))))


def _choices(found: Iterable[Any]) -> list[Any]:
    found = list(found)
    if not found:
        raise Unsuitable("there is nothing to choose from")
    return found
