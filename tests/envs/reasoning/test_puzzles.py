"""Knights, grids and schedules: one solution each, found by trying everything that a prompt allows."""

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.envs import parse_action
from ling_jax.envs.reasoning import grid, knights, scheduling
from ling_jax.envs.reasoning.puzzle import choose_clues, without_superfluous
from tests.helpers.survey import check, survey

SEEDS = st.integers(0, 10_000)
PUZZLES = (knights, grid, scheduling)


def outcome(puzzle, task, text):
    return puzzle.step(puzzle.reset(task, 0), parse_action(text))[1].rewards["outcome"]


def test_the_documented_puzzles():
    task = knights.make_task(0, 2)
    assert task.prompt == "?b:a|b;a:a#b;a:a|b=" and task.hidden["answer"] == "a-,b-"
    assert grid.make_task(0, 1).hidden["answer"] == "b,a,c"
    assert scheduling.make_task(0, 3).hidden["answer"] == "c,a,b"


def said_by_knights(people, prompt):
    """[(speaker, test of a world), …] of a prompt's words; a world maps names to whether they are knights."""
    tests = {
        r"(\w+) is a knight": lambda w, a: w[a],
        r"(\w+) is a knave": lambda w, a: not w[a],
        r"(\w+) and (\w+) are of the same kind": lambda w, a, b: w[a] == w[b],
        r"(\w+) and (\w+) are of different kinds": lambda w, a, b: w[a] != w[b],
        r"at least one of (\w+) and (\w+) is a knight": lambda w, a, b: w[a] or w[b],
        r"(\w+) and (\w+) are both knights": lambda w, a, b: w[a] and w[b],
        r"exactly (\d+) of us are knights": lambda w, n: sum(w.values()) == int(n),
    }
    for speaker, text in re.findall(r'^(\w+) says: "(.*)\."$', prompt, re.MULTILINE):
        (found,) = [(test, match) for form, test in tests.items() if (match := re.fullmatch(form, text))]
        yield speaker, lambda w, found=found: found[0](w, *found[1].groups())


@given(SEEDS, st.integers(4, 8))
@settings(max_examples=40)
def test_one_world_of_knights_is_possible(seed, people):
    task = knights.make_task(seed, people)
    names = re.findall(r"\w+", task.prompt.partition(" meet.")[0].replace(" and ", ", "))
    assert len(names) == people
    said = list(said_by_knights(names, task.prompt))
    worlds = [dict(zip(names, kinds, strict=True)) for kinds in itertools.product((True, False), repeat=people)]
    (world,) = [world for world in worlds if all(test(world) == world[speaker] for speaker, test in said)]
    assert task.hidden["answer"] == (",".join(name for name in names if world[name]) or "nobody")


@given(SEEDS, st.integers(2, 3))
def test_short_statements_leave_one_world_too(seed, people):
    task = knights.make_task(seed, people)
    (_,) = knights.worlds(people, [statement_of(text) for text in task.prompt[1:-1].split(";")])


def statement_of(text):
    speaker, said = text.split(":")
    number = knights.LETTERS.index
    if match := re.fullmatch(r"(\d)\+", said):
        return knights.Statement(number(speaker), "count", int(match[1]))
    if match := re.fullmatch(r"(\w)([+-])", said):
        return knights.Statement(number(speaker), "knight" if match[2] == "+" else "knave", number(match[1]))
    a, form, b = said
    forms = {"=": "same", "#": "differ", "|": "either", "&": "both"}
    return knights.Statement(number(speaker), forms[form], number(a), number(b))


GRID = {
    "=": lambda p, q: p == q,
    "!": lambda p, q: p != q,
    "<": lambda p, q: p < q,
    ">": lambda p, q: p + 1 == q,
    "~": lambda p, q: abs(p - q) == 1,
}


@given(SEEDS, st.integers(1, 3))
@settings(max_examples=60)
def test_one_arrangement_fits_a_short_grid(seed, difficulty):
    task = grid.make_task(seed, difficulty)
    groups, clues = task.prompt[1:-1].split(":")
    *clues, asked = clues.split(";")
    groups, houses = groups.split(), len(asked)
    assert (houses, len(groups)) == grid.SIZES[difficulty - 1]

    def fits(places, clue):
        a, form, b = clue
        return GRID[form](places[a], int(b) if b.isdigit() else places[b])

    found = set()
    for orders in itertools.product(itertools.permutations(range(1, houses + 1)), repeat=len(groups)):
        places = {v: p for group, order in zip(groups, orders, strict=True) for v, p in zip(group, order, strict=True)}
        if all(fits(places, clue) for clue in clues):
            found.add(tuple(sorted(places, key=places.get)))
            assert task.hidden["answer"] == ",".join(sorted(asked, key=places.get))
    assert len(found) == 1


@given(SEEDS, st.integers(4, 8))
@settings(max_examples=25)
def test_no_clue_of_a_grid_is_superfluous(seed, difficulty):
    made = grid._draw(random.Random(seed), difficulty)
    sizes = made.houses, made.kinds
    assert list(grid.solutions(*sizes, made.clues)) == [made.places]
    for left_out in made.clues:
        rest = [clue for clue in made.clues if clue != left_out]
        assert len(list(itertools.islice(grid.solutions(*sizes, rest), 2))) == 2


SCHEDULE = {
    r"(\w+) comes before (\w+)": lambda o, s, a, b: o.index(a) < o.index(b),
    r"(\w+) comes directly after (\w+)": lambda o, s, b, a: o.index(a) + 1 == o.index(b),
    r"nothing comes between (\w+) and (\w+)": lambda o, s, a, b: abs(o.index(a) - o.index(b)) == 1,
    r"something comes between (\w+) and (\w+)": lambda o, s, a, b: abs(o.index(a) - o.index(b)) > 1,
    r"(\w+) starts at hour (\d+)": lambda o, s, a, n: s[a][0] == int(n),
    r"(\w+) has ended by hour (\d+)": lambda o, s, a, n: s[a][1] <= int(n),
    r"(\w+) does not start before hour (\d+)": lambda o, s, a, n: s[a][0] >= int(n),
}


@given(SEEDS, st.integers(5, 7))
@settings(max_examples=40)
def test_one_order_fits_a_schedule(seed, jobs):
    task = scheduling.make_task(seed, jobs)
    hours = {job: int(n) for job, n in re.findall(r"(\w+) (\d+)[,.]", task.prompt.splitlines()[0])}
    texts = re.findall(r"^- (.*)$", task.prompt, re.MULTILINE)
    assert len(hours) == jobs
    clues = [
        (f, match.groups()) for text in texts for form, f in SCHEDULE.items() if (match := re.fullmatch(form, text))
    ]
    assert len(clues) == len(texts)

    def fits(order):
        ends = list(itertools.accumulate(hours[job] for job in order))
        slots = {job: (end - hours[job], end) for job, end in zip(order, ends, strict=True)}
        return all(test(order, slots, *names) for test, names in clues)

    (order,) = [order for order in itertools.permutations(hours) if fits(order)]
    assert ",".join(order) == task.hidden["answer"]


@given(SEEDS, st.integers(2, 7), st.data())
@settings(max_examples=60)
def test_a_beginning_is_refused_just_where_no_order_goes_on_from_it_by_one_clue(seed, jobs, data):
    """`may_hold` is exact for hours of the jobs that are placed, and never refuses what some order keeps."""
    made = scheduling._draw(random.Random(seed), jobs)
    clue = data.draw(st.sampled_from(made.clues))
    for order in itertools.permutations(range(jobs)):
        whole = scheduling.may_hold(clue, order, made.lengths)
        if whole:
            assert all(scheduling.may_hold(clue, order[:n], made.lengths) for n in range(1, jobs))


@pytest.mark.parametrize("puzzle", PUZZLES, ids=lambda puzzle: puzzle.NAME)
@given(SEEDS, st.data())
@settings(max_examples=30)
def test_a_worked_solution_ends_in_the_answer_and_fits_its_room(puzzle, seed, data):
    task = puzzle.make_task(seed, data.draw(st.sampled_from(puzzle.DIFFICULTIES[:8])))
    (text,) = puzzle.solution(task)
    assert outcome(puzzle, task, text) == 1 and len(text.encode()) < task.max_tokens
    assert text.splitlines()[:-1] == task.hidden["worked"] and task.hidden["worked"]


def test_blanks_and_case_do_not_matter_and_everything_else_does():
    task = scheduling.make_task(0, 6)
    jobs = task.hidden["answer"].split(",")
    assert outcome(scheduling, task, f"so A: {', '.join(jobs).upper()}.\n") == 1
    swapped = [jobs[1], jobs[0], *jobs[2:]]
    for wrong in (",".join(swapped), ",".join(jobs[:-1]), " ".join(jobs), ",".join([*jobs, jobs[0]]), ""):
        assert outcome(scheduling, task, f"A:{wrong}") == 0
    assert outcome(scheduling, task, ",".join(jobs)) == 0


def test_clues_that_cannot_decide_are_refused_with_what_they_leave():
    def other(clues):
        return next((n for n in range(8) if n != 5 and all(n % clue == 5 % clue for clue in clues)), None)

    def holds(clue, n):
        return n % clue == 5 % clue

    assert without_superfluous(choose_clues([2, 4, 8], other, holds), other) == [8]
    with pytest.raises(ValueError, match="all of 2 clues leave another solution: 1"):
        choose_clues([2, 4], other, holds)


def guess(rng, task):
    """The answer's items in another order, or other kinds: a list of the right form."""
    items = task.hidden["answer"].split(",")
    return f"A:{','.join([*items[1:], items[0] + '?'])}"


@pytest.mark.slow
@pytest.mark.parametrize("puzzle", PUZZLES, ids=lambda puzzle: puzzle.NAME)
def test_a_thousand_puzzles(puzzle):
    check(survey(puzzle.NAME, 1000, lambda task: len(task.hidden["worked"]), guess))
