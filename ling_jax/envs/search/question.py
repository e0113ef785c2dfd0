"""Questions over a universe as data: what fits them by a check of everything there is, and how they are asked."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from ling_jax.envs.search.fields import KINDS
from ling_jax.envs.search.universe import Universe

NAME = "name"  # the constraint that a thing has a name


class Constraint(NamedTuple):
    """A thing fits where following `path`, links and at last a fact, ends at one of `values`."""

    path: tuple[str, ...]
    values: Sequence[Any]
    said: str
    words: str = ""  # that stand in the document of every thing that fits; "" where none are known


class Hop(NamedTuple):
    """From a thing to another one by a link of the first (forward) or of the other, which also has to fit."""

    link: str
    kind: str  # of the other thing
    forward: bool
    constraints: tuple[Constraint, ...] = ()


class Question(NamedTuple):
    kind: str  # of the thing that the request begins with
    constraints: tuple[Constraint, ...]
    hops: tuple[Hop, ...]
    asked: str  # fact of the last thing


def fits(universe: Universe, kind: str, name: str, constraint: Constraint) -> bool:
    """Whether a thing fits a constraint."""
    *links, last = constraint.path
    for link in links:
        kind, name = KINDS[kind].fields[link].kind, universe[kind][name][link]
    return (name if last == NAME else universe[kind][name][last]) in constraint.values


def all_fitting(universe: Universe, kind: str, constraints: Iterable[Constraint]) -> set[str]:
    """The names of all things of a kind that fit all constraints."""
    constraints = tuple(constraints)
    return {name for name in universe[kind] if all(fits(universe, kind, name, each) for each in constraints)}


def follow(universe: Universe, kind: str, names: Collection[str], hop: Hop) -> set[str]:
    """The names of all things that a hop from one of these things leads to."""
    others = all_fitting(universe, hop.kind, hop.constraints)
    if hop.forward:
        return others & {universe[kind][name][hop.link] for name in names}
    return {other for other in others if universe[hop.kind][other][hop.link] in names}


def candidates(universe: Universe, question: Question) -> list[set[str]]:
    """All things that fit the request's beginning, and all that each further hop leads to."""
    found = [all_fitting(universe, question.kind, question.constraints)]
    for kind, hop in zip(kinds(question), question.hops, strict=False):
        found.append(follow(universe, kind, found[-1], hop))
    return found


def answers(universe: Universe, question: Question) -> set[Any]:
    """All values that fit the question."""
    kind = kinds(question)[-1]
    return {universe[kind][name][question.asked] for name in candidates(universe, question)[-1]}


def kinds(question: Question) -> list[str]:
    """The kinds of the things along the chain."""
    return [question.kind, *(hop.kind for hop in question.hops)]


def ask(question: Question) -> str:
    """The request in words."""
    kind, noun = question.kind, question.kind
    said = [f"A {kind} {_all(constraint.said for constraint in question.constraints)}."]
    for hop in question.hops:
        if hop.forward:
            link = KINDS[kind].fields[hop.link]
            said.append(f"That {noun} {_all([link.hop])}.")
            noun = link.noun
        else:
            link = KINDS[hop.kind].fields[hop.link]
            tests = [constraint.said for constraint in hop.constraints]
            said.append(f"A {hop.kind} {_all([link.back.format(noun), *tests])}.")
            noun = hop.kind
        kind = hop.kind
    return " ".join([*said, KINDS[kind].fields[question.asked].asks.format(noun)])


def _all(tests: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *first, last = tests
    return f"{', '.join(first)} and {last}" if first else last
