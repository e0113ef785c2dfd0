"""Jobs on one machine, one after the other: `?a3b1c2:a<b;c@4=` -> `A:a,b,c` in order.

A job has a length in hours; the first one starts at hour 0. Up to `SHORT` a clue is a few characters: a<b "a before
b", a>b "b directly after a", a~b "with nothing between them", a#b "not one after the other", a@4 "a starts at hour 4",
a-4 "a has ended by hour 4", a+4 "a starts at hour 4 or later".
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ling_jax.envs.base import Task, draw_task
from ling_jax.envs.reasoning.puzzle import choose_clues, draw_worded, puzzle_task, shuffled, without_superfluous
from ling_jax.envs.reasoning.puzzle import reset as reset
from ling_jax.envs.reasoning.puzzle import session as session
from ling_jax.envs.reasoning.puzzle import solution as solution
from ling_jax.envs.reasoning.puzzle import step as step

NAME = "scheduling"
DIFFICULTIES = range(2, 11)  # jobs, and clues for each of them; our choice
SHORT = 4  # jobs up to which a puzzle has no words
LETTERS = "abcdefghij"
JOBS = ("bake", "clean", "drill", "etch", "fold", "glue", "heat", "ink", "join", "knit")
LENGTHS = range(1, 6)  # hours
OF_HOURS = ("at", "by", "from")
TOKENS_PER_LINE = 64  # our choice: a line of a worked solution has up to 50 characters


class Clue(NamedTuple):
    form: str  # of `FORMS`
    first: int  # a job
    second: int  # another job, or an hour


class Schedule(NamedTuple):
    lengths: Sequence[int]
    order: tuple[int, ...]
    clues: Sequence[Clue]


FORMS = {  # form -> (in characters, in words)
    "before": ("{a}<{b}", "{A} comes before {B}"),
    "then": ("{a}>{b}", "{B} comes directly after {A}"),
    "beside": ("{a}~{b}", "nothing comes between {A} and {B}"),
    "apart": ("{a}#{b}", "something comes between {A} and {B}"),
    "at": ("{a}@{n}", "{A} starts at hour {n}"),
    "by": ("{a}-{n}", "{A} has ended by hour {n}"),
    "from": ("{a}+{n}", "{A} does not start before hour {n}"),
}


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` jobs, and clues none of which could be left out."""
    if difficulty > SHORT:
        return draw_worded(NAME, seed, difficulty, DIFFICULTIES, _draw, _in_words)
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, lambda rng, _: _in_characters(rng, _draw(rng, difficulty)))


def orders(lengths: Sequence[int], clues: Sequence[Clue]) -> Iterator[tuple[int, ...]]:
    """All orders that fit the clues, one after the other."""
    return (order for order, refuted in _search(lengths, clues, ()) if refuted is None)


def _search(
    lengths: Sequence[int], clues: Sequence[Clue], begun: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], Clue | None]]:
    """(a beginning, the clue that it breaks) of each that was tried, and (an order, None) of each that fits."""
    if len(begun) == len(lengths):
        yield begun, None
        return
    for job in range(len(lengths)):
        if job in begun:
            continue
        now = (*begun, job)
        broken = next((clue for clue in clues if not may_hold(clue, now, lengths)), None)
        if broken is not None:
            yield now, broken
        else:
            yield from _search(lengths, clues, now)


def may_hold(clue: Clue, begun: Sequence[int], lengths: Sequence[int]) -> bool:
    """Whether a clue is true of a beginning or can become so; of a whole order, whether it is true."""
    place = {job: i for i, job in enumerate(begun)}
    if clue.form in OF_HOURS:
        done = place.get(clue.first, len(begun))
        start = sum(lengths[job] for job in begun[:done])
        return _may_start(clue, start, lengths[clue.first], certain=clue.first in place)
    if clue.first in place and clue.second in place:
        gap = place[clue.second] - place[clue.first]
        return {"before": gap > 0, "then": gap == 1, "beside": abs(gap) == 1, "apart": abs(gap) > 1}[clue.form]
    if clue.first not in place and clue.second not in place:
        return True
    ordered = clue.first in place or clue.form not in ("before", "then")
    is_last = begun[-1] in (clue.first, clue.second)
    if clue.form == "apart":
        return not is_last or len(lengths) - len(begun) > 1
    return ordered and (is_last or clue.form == "before")


def _may_start(clue: Clue, start: int, length: int, *, certain: bool) -> bool:
    """Whether a job may start at this hour, or, where that is not certain, then or later."""
    if clue.form == "at":
        return start == clue.second or (not certain and start < clue.second)
    return start + length <= clue.second if clue.form == "by" else start >= clue.second or not certain


def _draw(rng: random.Random, jobs: int) -> Schedule:
    lengths = [rng.choice(LENGTHS) for _ in range(jobs)]
    order = tuple(shuffled(rng, range(jobs)))
    return Schedule(lengths, order, _draw_clues(rng, lengths, order))


def _draw_clues(rng: random.Random, lengths: Sequence[int], order: tuple[int, ...]) -> list[Clue]:
    jobs, hours = range(len(lengths)), range(1, sum(lengths) + 1)
    forms = [form for form in FORMS if form not in OF_HOURS]
    pool = [Clue(form, a, b) for form in forms for a, b in itertools.permutations(jobs, 2) if _is_once(form, a, b)]
    pool += [Clue(form, a, hour) for form in OF_HOURS for a in jobs for hour in hours]
    pool = shuffled(rng, (clue for clue in pool if may_hold(clue, order, lengths)))

    def other(clues: Sequence[Clue]) -> tuple[int, ...] | None:
        return next((found for found in orders(lengths, clues) if found != order), None)

    def is_true(clue: Clue, found: tuple[int, ...]) -> bool:
        return may_hold(clue, found, lengths)

    return without_superfluous(choose_clues(pool, other, is_true), other)


def _is_once(form: str, a: int, b: int) -> bool:
    """What is symmetric is said one way."""
    return form not in ("beside", "apart") or a < b


def _until_solved(lengths: Sequence[int], clues: Sequence[Clue]) -> Iterator[tuple[tuple[int, ...], Clue | None]]:
    for begun, broken in _search(lengths, clues, ()):
        yield begun, broken
        if broken is None:
            return


def _line(begun: Sequence[int], broken: Clue | None) -> str:
    text = "".join(LETTERS[job] for job in begun)
    return f"{text} yes" if broken is None else f"{text} no {_said(broken)}"


def _said(clue: Clue, *, words: bool = False) -> str:
    form = FORMS[clue.form][1 if words else 0]
    if clue.form in OF_HOURS:
        return form.format(a=LETTERS[clue.first], A=JOBS[clue.first], n=clue.second)
    a, b = clue.first, clue.second
    return form.format(a=LETTERS[a], b=LETTERS[b], A=JOBS[a], B=JOBS[b])


def _in_characters(rng: random.Random, schedule: Schedule) -> dict[str, Any]:
    clues = shuffled(rng, schedule.clues)
    jobs = "".join(f"{letter}{length}" for letter, length in zip(LETTERS, schedule.lengths, strict=False))
    return _task(schedule, clues, LETTERS, f"?{jobs}:{';'.join(map(_said, clues))}=")


def _in_words(rng: random.Random, schedule: Schedule) -> dict[str, Any]:
    clues = shuffled(rng, schedule.clues)
    prompt = "\n".join([
        "A machine does these jobs one after the other, without a break, from hour 0 on. Hours that each takes: "
        f"{', '.join(f'{job} {hours}' for job, hours in zip(JOBS, schedule.lengths, strict=False))}.",
        *(f"- {_said(clue, words=True)}" for clue in clues),
        "In which order are they done? End with A: and all jobs in order, with commas.",
    ])  # fmt: skip
    return _task(schedule, clues, JOBS, prompt)


def _task(schedule: Schedule, clues: Sequence[Clue], names: Sequence[str], prompt: str) -> dict[str, Any]:
    worked = [_line(begun, broken) for begun, broken in _until_solved(schedule.lengths, clues)]
    answer = ",".join(names[job] for job in schedule.order)
    return puzzle_task(prompt, answer, worked, TOKENS_PER_LINE * (len(worked) + 4))
