"""Questions made from their answers: one thing fits, by a check that reads the documents alone."""

import random
import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ling_jax.envs.search.fields import KINDS, PAGES, Fact
from ling_jax.envs.search.question import NAME, all_fitting, answers, ask, fits
from ling_jax.envs.search.quests import LEVELS
from ling_jax.envs.search.synthesis import Unsuitable, draw_question
from ling_jax.envs.search.universe import draw_universe, write_documents


def drawn(seed, level):
    """(universe, question, chain); draws that are not suitable are no examples."""
    rng = random.Random(seed)
    universe = draw_universe(rng, level.size)
    try:
        return universe, *draw_question(rng, universe, level)
    except Unsuitable:
        assume(False)


def read_back(universe, documents):
    """(kind, name, field) -> text, as the sentences of the documents say it."""
    kinds = {name: kind for kind in universe for name in universe[kind]}
    found = {}
    for document in documents:
        kind = kinds[document.title]
        for field, known in KINDS[kind].fields.items():
            if known.app != document.app:
                continue
            pattern = re.escape(known.sentence).replace(r"\{name\}", re.escape(document.title))
            link = r" \[\w+\]" if document.app == PAGES and not isinstance(known, Fact) else ""
            (value,) = re.findall(pattern.replace(r"\{value\}", f"([^.\\[,]+?){link}"), document.text)
            found[kind, document.title, field] = value.strip()
    return found


def chains(universe, facts, question):
    """All values that are the end of a chain which fits, found by trying every thing at every place."""

    def is_fit(kind, name, constraint):
        *links, last = constraint.path
        for link in links:
            kind, name = KINDS[kind].fields[link].kind, facts[kind, name, link]
        return (name if last == NAME else facts[kind, name, last]) in map(str, constraint.values)

    def walk(kind, name, hops):
        if not hops:
            yield facts[kind, name, question.asked]
            return
        hop, *rest = hops
        for other in universe[hop.kind]:
            linked = facts[kind, name, hop.link] == other if hop.forward else facts[hop.kind, other, hop.link] == name
            if linked and all(is_fit(hop.kind, other, each) for each in hop.constraints):
                yield from walk(hop.kind, other, rest)

    for name in universe[question.kind]:
        if all(is_fit(question.kind, name, each) for each in question.constraints):
            yield from walk(question.kind, name, question.hops)


@given(st.integers(0, 10_000), st.sampled_from([4, 5, 6, 7, 8, 9, 10]))
@example(3475, 10)  # somebody was born "in the 1970s", and the year that is sought is 1970
@settings(max_examples=60)
def test_one_chain_fits_by_what_the_documents_say(seed, difficulty):
    universe, question, _ = drawn(seed, LEVELS[difficulty])
    facts = read_back(universe, write_documents(random.Random(seed), universe))
    (answer,) = chains(universe, facts, question)
    assert [answer] == list(map(str, answers(universe, question)))
    assert answer not in re.sub(r"\b\d{4}s\b", "", ask(question))  # a decade is no year


@given(st.integers(0, 10_000), st.sampled_from([6, 7, 8, 9, 10]))
@settings(max_examples=40)
def test_every_constraint_is_needed(seed, difficulty):
    universe, question, chain = drawn(seed, LEVELS[difficulty])
    assume(len(question.constraints) > 1)
    assert all_fitting(universe, question.kind, question.constraints) == {chain[0]}
    for constraint in question.constraints:
        others = [each for each in question.constraints if each != constraint]
        near = all_fitting(universe, question.kind, others) - {chain[0]}
        assert near and not any(fits(universe, question.kind, name, constraint) for name in near)


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_a_chain_never_comes_back(seed):
    _, question, chain = drawn(seed, LEVELS[9])
    assert len(set(chain)) == len(chain) == 1 + len(question.hops) == 6
    assert sum(not hop.forward for hop in question.hops) == LEVELS[9].back


def test_universes_and_documents_are_those_of_the_seed():
    first, second = (
        [draw_universe(rng, 20), write_documents(rng, draw_universe(rng, 20))] for rng in map(random.Random, (3, 3))
    )
    assert first == second
    ids = [document.id for document in first[1]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("difficulty", LEVELS)
def test_all_names_are_different(difficulty):
    universe = draw_universe(random.Random(difficulty), LEVELS[difficulty].size)
    names = [name for things in universe.values() for name in things]
    assert len(set(names)) == len(names)
