import json
import os
import signal
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rewards import answer as answer_module
from ling_jax.rewards.answer import AnswerChecker, Checked, extract_answer, parse_number

HANG = "\\boxed{10^{10^{10^{10}}}}"


@pytest.fixture(scope="module")
def checker():
    with AnswerChecker(limit=30) as checker:  # a busy machine may take long over anything
        yield checker


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = 24\n#### 72", "72"),
        ("#### 1\nno,\n#### $1,234.50.", "$1,234.50"),
        ("#### Solution", None),
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1} or rather \\boxed {2}", "2"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("<answer> 7 </answer>", "7"),
        ("<answer>1</answer><answer>it is \\boxed{2}</answer> \\boxed{3}", "2"),
        ("<answer>never closed <answer>5</answer>", "5"),
        ("<think>\\boxed{1}</think>It is \\boxed{2}", "2"),
        ("<think>\\boxed{1}</think>It is two", None),
        ("<think>\\boxed{1}", None),
        ("\\boxed{ }", None),
        ("<answer></answer> \\boxed{3}", None),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_the_final_answer_is_found(text, answer):
    assert extract_answer(text) == answer


@given(st.text())
def test_extraction_never_raises_and_finds_what_was_boxed(text):
    extract_answer(text)
    plain = text.translate(str.maketrans("", "", "\\{}<")).strip()
    assert extract_answer(f"so \\boxed{{{plain}}}") == (plain or None)


@pytest.mark.parametrize("unit", ["\\boxed{", "<answer>", "#### ", "<answer>\\boxed{"])
def test_extraction_takes_linear_time(unit):
    start = time.monotonic()
    extract_answer(unit * 30_000)
    assert time.monotonic() - start < 2  # 0.05 s alone; quadratic takes minutes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-7", -7),
        ("1,234,567.50", Fraction("1234567.5")),
        ("$3", 3),
        ("\\$3.", 3),
        (".5", Fraction("0.5")),
        ("007", 7),
        ("1,23", None),
        ("1e9", None),
        ("1/2", None),
        ("25%", None),
        ("", None),
        ("9" * 10_000, None),
    ],
)
def test_plain_numbers_are_read(text, value):
    assert parse_number(text) == value


def gsm8k(data) -> list[tuple[str, str, str]]:
    """(question, solution, its answer as text)."""
    records = [json.loads(line) for line in (data / "gsm8k/train.jsonl").read_text().splitlines()]
    return [(record["question"], record["answer"], record["answer"].split("####")[1].strip()) for record in records]


def wrong_variants(question: str, gold: str) -> list[str]:
    """Off by one, sign, digits reversed, one changed, ten times, another number of the question."""
    value = int(gold.replace(",", ""))
    digits = str(abs(value))
    changed = digits[:-1] + str((int(digits[-1]) + 5) % 10)
    others = [word.strip("$.,?") for word in question.split()]
    variants = [value + 1, value - 1, -value, value * 10, digits[::-1], changed, *filter(str.isdecimal, others)]
    return [str(variant) for variant in variants if int(variant) != value]


def test_every_gold_answer_of_gsm8k_is_accepted_in_every_form(data, checker):
    records = gsm8k(data)
    assert len(records) == 7473
    for form in ("{solution}", "so \\boxed{{{gold}}}", "<answer>{gold}</answer>", "#### {gold}.00"):
        pairs = [(form.format(solution=solution, gold=gold), gold) for _, solution, gold in records]
        assert {result.status for result in checker.check_all(pairs)} == {"right"}, form


def test_wrong_answers_to_gsm8k_are_rejected(data, checker):
    pairs = [(f"#### {wrong}", gold) for question, _, gold in gsm8k(data) for wrong in wrong_variants(question, gold)]
    assert len(pairs) > 1000
    assert {result.status for result in checker.check_all(pairs)} == {"wrong"}


def test_the_library_agrees_with_the_comparison_of_plain_numbers(data, checker):
    for question, _, gold in gsm8k(data)[::150]:
        assert checker._compare(gold, gold) == ("right", "")
        for wrong in wrong_variants(question, gold):
            assert checker._compare(wrong, gold) == ("wrong", ""), (wrong, gold)


@pytest.mark.parametrize(
    ("answer", "gold", "status"),
    [
        ("\\frac12", "0.5", "right"),
        ("2\\sqrt{2}", "\\sqrt{8}", "right"),
        ("x^2+2x+1", "(x+1)^2", "right"),
        ("\\{2,1\\}", "\\{1,2\\}", "right"),
        ("5", "x=5", "right"),
        ("12\\text{ cm}", "12", "right"),
        ("25\\%", "25", "right"),
        ("(2,1)", "(1,2)", "wrong"),
        ("x^2+1", "(x+1)^2", "wrong"),
        ("18 or 19", "18", "wrong"),
        ("18, 19", "18", "wrong"),
        ("%%%", "3", "wrong"),
        ("\\frac{", "3", "wrong"),
        ("B", "A", "wrong"),
    ],
)
def test_expressions_are_compared_by_the_library(checker, answer, gold, status):
    result = checker.check(f"<answer>{answer}</answer>", gold)
    assert (result.status, result.answer) == (status, answer)


def test_answers_come_in_the_order_of_questions(checker):
    pairs = [("\\boxed{1+x}", "x+1"), ("none", "1"), ("#### 2", "3"), ("\\boxed{y}", "x+1"), ("#### 3", "3")]
    found = [result.status for result in checker.check_all(pairs)]
    assert found == ["right", "no_answer", "wrong", "wrong", "right"]


def test_a_check_that_hangs_is_killed_and_the_next_one_works():
    with AnswerChecker(limit=3) as checker:
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"
        worker, start = checker._worker, time.monotonic()
        result = checker.check(HANG, "3")
        took = time.monotonic() - start
        assert (result.status, result.reward) == ("timeout", None)
        assert 3 <= took < 6, took
        assert worker.returncode == -signal.SIGKILL
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"


def test_a_worker_that_dies_is_an_error_and_not_a_reward():
    with AnswerChecker() as checker:
        checker._started()
        os.kill(checker._worker.pid, signal.SIGKILL)
        checker._worker.wait()
        result = checker.check("\\boxed{1+x}", "x+1")
        assert result.status == "error" and result.detail and result.reward is None
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"


def test_a_worker_that_cannot_start_is_an_error_that_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(answer_module, "WORKER", tmp_path / "absent.py")
    with AnswerChecker() as checker:
        result = checker.check("\\boxed{1+x}", "x+1")
    assert result.status == "error" and "did not start" in result.detail and "absent.py" in result.detail


def test_one_process_serves_all_checks_and_ends_with_the_checker():
    with AnswerChecker() as checker:
        checker.check("#### 1", "1")
        assert checker._worker is None  # plain numbers need none
        checker.check("\\boxed{1+x}", "x+1")
        worker = checker._worker
        checker.check("\\boxed{2+x}", "x+1")
        assert checker._worker is worker
    assert worker.returncode is not None and checker._worker is None


def test_an_interrupted_check_leaves_no_reply_for_the_next(monkeypatch):
    with AnswerChecker() as checker:
        checker._started()
        with monkeypatch.context() as patched:
            patched.setattr(checker, "_reply", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                checker.check("\\boxed{y}", "x+1")
        assert checker._worker is None
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"


def test_it_works_outside_of_the_main_thread():
    found = []

    def work():
        with AnswerChecker() as checker:
            found.append(checker.check("\\boxed{1+x}", "x+1").status)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["right"]


def test_only_a_verdict_is_a_reward():
    rewards = [Checked(status, "1").reward for status in ("right", "wrong", "no_answer", "timeout", "error")]
    assert rewards == [1.0, 0.0, 0.0, None, None]


def test_what_cannot_be_checked_is_refused(checker):
    with pytest.raises(ValueError, match="gold is empty"):
        checker.check("#### 1", " ")
    with pytest.raises(ValueError, match="limit is 0"):
        AnswerChecker(limit=0)
