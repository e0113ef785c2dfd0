"""What answers mean: every row of two tables, and laws of numbers in all their spellings."""

import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.rewards import AnswerChecker
from ling_jax.rewards.answer_form import same_answer
from ling_jax.rewards.answer_text import normalise
from ling_jax.rewards.answer_worker import compare

TABLES = ("answers.tsv", "more_answers.tsv")


def rows():
    for name in TABLES:
        lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
        for line in lines[1:]:
            yield pytest.param(*line.split("\t"), id=line.replace("\t", " "))


@pytest.fixture(scope="module")
def checker():
    with AnswerChecker(limit=30) as checker:
        yield checker


@pytest.mark.parametrize(("verdict", "text", "gold"), list(rows()))
def test_every_row_has_its_verdict(checker, verdict, text, gold):
    assert checker.check(text, gold).status == verdict


def no_worker(answer: str, gold: str) -> bool:
    raise AssertionError(f"{answer!r} against {gold!r} needs no worker")


def grouped(separator):
    return lambda value: f"{value:,}".replace(",", separator)


SPELLINGS = [
    str, grouped(","), grouped("\\,"), grouped("{,}"), grouped("\u2009"), grouped("\u202f"), grouped(" "),
    "{}.0".format, "{}.".format, "+{}".format, "\\${}".format, "${}".format, "€{}".format, "{} USD".format,
    "{} dollars".format, "{}\\text{{ cm}}".format, "{} \\text{{ cm}}^2".format, "{}^\\circ".format, "{}°".format,
    "{} m/s".format, "**{}**".format, "${}$".format, "\\({}\\)".format, "\\text{{{}}}".format, "\\mathbf{{{}}}".format,
    "x={}".format, "({})".format, "{}e0".format, "\\boxed{{{}}}".format, "\\frac{{{}}}{{1}}".format, "{}/1".format,
    "{}\\times 10^{{0}}".format, "Answer: {}".format, "{}\\%".format,
    "\\displaystyle {}".format, "\\left({}\\right)".format,
    lambda value: str(value).translate(str.maketrans("0123456789", "０１２３４５６７８９")),
]  # fmt: skip
spelling = st.sampled_from(SPELLINGS)


@given(st.integers(0, 10**9), spelling)
def test_a_number_is_itself_in_every_spelling(value, spell):
    assert same_answer(spell(value), str(value), no_worker)
    assert same_answer(spell(value).replace("+", ""), f"x = {value}", no_worker)


@given(st.integers(0, 10**6), st.integers(0, 10**6), spelling)
def test_a_number_is_no_other_number_in_any_spelling(value, other, spell):
    if value not in (other, 100 * other):
        assert not same_answer(spell(value), str(other), no_worker)


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(0, 50))
def test_fractions_are_exact(top, bottom, places):
    value = Fraction(top, bottom)
    for text in (f"{top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"\\dfrac{{{2 * top}}}{{{2 * bottom}}}"):
        assert same_answer(text, f"{value.numerator}/{value.denominator}", no_worker)
    whole, rest = divmod(top, bottom)
    if rest and whole:
        for text in (f"{whole} {rest}/{bottom}", f"{whole}\\frac{{{rest}}}{{{bottom}}}"):
            assert same_answer(text, f"{top}/{bottom}", no_worker)
    digits = str(top * 10**places // bottom).zfill(places + 1)
    decimal = f"{digits[: len(digits) - places]}.{digits[len(digits) - places :]}"
    assert same_answer(decimal, f"{top}/{bottom}", no_worker) == (Fraction(decimal.rstrip(".")) == value)


@given(
    st.integers(-(10**6), 10**6),
    st.integers(10**3, 10**6),
    st.sampled_from([", ", " or ", " and ", " ", "; ", "=", " not ", ":", " - "]),
)
def test_two_numbers_are_not_one(first, second, between):
    for text in (f"{first}{between}{second}", f"{second}{between}{first}"):
        same = same_answer(text, str(second), lambda answer, gold: False)
        assert not same or first == second or first == 0 or (between == " " and len(str(first)) == 3), text


@st.composite
def arithmetic(draw, depth=3):
    """(LaTeX, its exact value) of sums, products, quotients and powers."""
    if depth == 0 or draw(st.booleans()):
        value = draw(st.integers(1, 30))
        return str(value), Fraction(value)
    (a, x), (b, y) = draw(arithmetic(depth - 1)), draw(arithmetic(depth - 1))
    kind = draw(st.sampled_from("+-*()/^"))
    if kind == "+":
        return f"({a}+{b})", x + y
    if kind == "-":
        return f"({a}-{b})", x - y
    if kind == "*":
        return f"{a}\\cdot {b}", x * y
    if kind == "/" and y:
        return f"\\frac{{{a}}}{{{b}}}", x / y
    if kind == "^":
        power = draw(st.integers(0, 3))
        return f"({a})^{power}", x**power
    return f"({a})({b})", x * y


@settings(max_examples=25)
@given(arithmetic())
def test_arithmetic_is_read_as_it_is_written(found):
    text, value = found
    gold = f"\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    sign = "-" if value < 0 else ""
    assert compare(normalise(text), normalise(sign + gold))
    assert not compare(normalise(text), normalise(f"{sign}{gold}+10^{{-40}}"))


@pytest.mark.parametrize("digits", [5_000, 50_000])
def test_numbers_of_any_length_are_compared_exactly_and_at_once(digits):
    number, start = "9" * digits, time.process_time()
    assert same_answer(f"{number}.0", number, no_worker) and not same_answer(f"{number[:-1]}8", number, no_worker)
    assert time.process_time() - start < 1  # 1 ms alone


UNITS = ("(", "[", "{", "\\frac", "\\sqrt[", "\\text{", "^", "1,", "a-", "1 ", "0.3", "\\pm ", "\\cup ", "=", "<", "+",
         "-", "½", "²", "a or ", "|", "$", "**", "(x", "\\boxed{")  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_is_looked_at_for_long(unit):
    for text in (unit * (3900 // len(unit)), "18" + unit * (3900 // len(unit)), unit * (3900 // len(unit)) + "18"):
        start = time.process_time()
        same_answer(text, "\\frac{x}{2}", lambda a, g: False)
        assert time.process_time() - start < 1  # 0.05 s alone
