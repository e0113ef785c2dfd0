"""Seed modules are right, and the table says which of their tests find which mistake."""

import itertools
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ling_jax.envs.coding import mutants, variants
from ling_jax.envs.coding.mutations import mutations
from tests.helpers.mutants import failing

each = pytest.mark.parametrize("name", mutants.NAMES)


@each
def test_the_tests_of_a_seed_pass(name):
    assert failing(name, mutants.source(name)) == ()
    assert len(mutants.test_places(name)) >= 10


@each
def test_some_mistakes_of_the_table_are_found_by_the_tests_that_it_says(name):
    for mutant in random.Random(name).sample(mutants.table()[name], 5):
        assert failing(name, mutant.mutation.applied(mutants.source(name))) == mutant.failing


@pytest.mark.slow
@each
def test_the_table_holds_all_mistakes_that_some_tests_find_and_others_do_not(name):
    """In a process of its own, since some mistakes lead to loops that only an alarm ends."""
    program = [sys.executable, "-W", "ignore", "-m", "tests.helpers.mutants", name]
    done = subprocess.run(program, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@each
def test_a_mistake_is_in_one_place_and_the_source_still_compiles(name):
    source = mutants.source(name)
    found = mutations(source)
    assert len(found) == len(set(found)) >= 20
    for mutation in found:
        compile(wrong := mutation.applied(source), name, "exec")
        assert wrong != source and wrong[: mutation.start] == source[: mutation.start]
        assert wrong.endswith(source[mutation.stop :])


def test_the_kinds_of_mistakes():
    source = "def f(a, b):\n    a += 1\n    g(a, b)\n    return not a < min(b, 2) and True\n"
    lines = {mutation.applied(source) for mutation in mutations(source)}
    for old, new in [
        ("+=", "-="),
        ("1", "2"),
        ("1", "0"),
        ("    g(a, b)\n", ""),
        ("g(a, b)", "g(b, a)"),
        ("not a < min(b, 2)", "a < min(b, 2)"),
        ("a <", "a <="),
        ("min", "max"),
        ("and", "or"),
        ("True", "False"),
    ]:
        assert source.replace(old, new, 1) in lines


@each
def test_other_names_clash_with_nothing(name):
    words = set(variants.WORD.findall(mutants.source(name) + mutants.test_source(name)))
    names = list(itertools.chain(*variants.groups(name)))
    assert len(names) == len(set(names))
    for own, *others in variants.groups(name):
        assert own in words and not words & set(others)


@each
def test_a_seed_under_other_names_passes_its_tests(name):
    rng = random.Random(name)
    for _ in range(6):
        renames = variants.draw_renames(rng, name)
        texts = [variants.renamed(text, renames) for text in (mutants.source(name), mutants.test_source(name))]
        assert failing(name, *texts) == (), renames


def test_names_are_replaced_all_at_once_and_as_whole_words():
    assert variants.renamed(r"ab = b.ab + 'x\nb'", {"ab": "b", "b": "ab"}) == r"b = ab.b + 'x\nab'"


@each
def test_a_part_of_the_tests_is_a_file_of_tests(name):
    kept = random.Random(name).sample(list(mutants.test_places(name)), 3)
    for tests in (frozenset(kept), frozenset()):
        text = mutants.tests_with(name, tests)
        compile(text, name, "exec")
        assert sorted(re.findall(r"def (test_\w+)", text)) == sorted(test.split(".")[1] for test in tests)
    assert failing(name, mutants.source(name), mutants.tests_with(name, frozenset(kept))) == ()
