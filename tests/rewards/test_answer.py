import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rewards import answer as answer_module
from ling_jax.rewards.answer import AnswerChecker, Checked, extract_answer

WORKER = answer_module.WORKER
HANG = "\\boxed{10^{10^{10^{10}}}}"


@pytest.fixture(scope="module")
def checker():
    with AnswerChecker(limit=30) as checker:  # a busy machine may take long over anything
        yield checker


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = 24\n#### 72", "72"),
        ("#### 1\nno,\n#### $1,234.50.", "$1,234.50."),
        ("#### 17 or 18\nThat is all.", "17 or 18"),
        ("#### Solution\nIt is #18", None),
        ("#### Step 1\nSo:\n#### yes\n", "yes"),
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1} or rather \\boxed {2}", "2"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("<answer> 7 </answer>", "7"),
        ("<answer>1</answer><answer>it is \\boxed{2}</answer> \\boxed{3}", "2"),
        ("<answer>\\boxed{1} or \\boxed{2}</answer>", "1, 2"),
        ("<answer>\\boxed{2}, so \\boxed{2}</answer>", "2"),
        ("\\boxed{\\boxed{2}}", "\\boxed{2}"),
        ("<answer>never closed <answer>5</answer>", "5"),
        ("<think>\\boxed{1}</think>It is \\boxed{2}", "2"),
        ("<think>\\boxed{1}</think> 2 dollars\n", "2 dollars"),
        ("<think>\\boxed{1}</think>It is two. " + "Words. " * 50, None),
        ("so \\boxed{2\\\\}", "2\\\\"),
        ("<Answer>2</Answer>", "2"),
        ("<think>\\boxed{1}", None),
        ("\\boxed{ }", None),
        ("<answer></answer> \\boxed{3}", None),
        ("The answer is 5.", "The answer is 5."),
        ("so \\boxed{5", None),
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


FORMS = (
    "{solution}",
    "#### {gold}.00",
    "so \\boxed{{{gold}}}",
    "<answer>{gold}</answer>",
    "#### **{gold}**",
    "#### ${gold}",
    "\\boxed{{\\${gold}}}",
    "\\boxed{{\\text{{{gold}}}}}",
    "\\boxed{{{gold} \\text{{ hours}}}}",
    "<answer>{gold} dollars</answer>",
    "<answer>x = {gold}</answer>",
    "<answer>The answer is {gold}.</answer>",
    "\\boxed{{{gold}\\%}}",  # where a percentage is asked for, the records have a bare number
)


def test_every_gold_answer_of_gsm8k_is_accepted_in_every_form(data, checker):
    records = gsm8k(data)
    assert len(records) == 7473
    for i, form in enumerate(FORMS):
        some = records if form == "{solution}" else records[i :: len(FORMS)]
        pairs = [(form.format(solution=solution, gold=gold), gold) for _, solution, gold in some]
        assert {result.status for result in checker.check_all(pairs)} == {"right"}, form


def test_wrong_answers_to_gsm8k_are_rejected(data, checker):
    pairs = [(f"#### {wrong}", gold) for question, _, gold in gsm8k(data) for wrong in wrong_variants(question, gold)]
    assert len(pairs) > 1000
    assert {result.status for result in checker.check_all(pairs)} == {"wrong"}


def test_answers_come_in_the_order_of_questions(checker):
    pairs = [("\\boxed{1+x}", "x+1"), ("none", "1"), ("#### 2", "3"), ("\\boxed{y}", "x+1"), ("#### 3", "3")]
    found = [result.status for result in checker.check_all(pairs)]
    assert found == ["right", "wrong", "wrong", "wrong", "right"]


def test_an_answer_that_keeps_its_worker_busy_is_wrong_and_the_next_check_works():
    with AnswerChecker(limit=1) as checker:
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"
        process = only_process(checker)
        result = checker.check(HANG, "3")
        assert (result.status, result.reward, result.detail) == ("wrong", 0.0, "took longer than 1 s")
        assert process.returncode == -signal.SIGPROF  # by the processor time it used, however busy the machine is
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"


def test_an_answer_that_needs_too_much_memory_is_wrong(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    small = answer_module.WORKER.read_text().replace("MEMORY_BYTES = 1 << 30", "MEMORY_BYTES = 1 << 29")
    worker.write_text(
        small.replace("def compare(", "def _compare(").replace(
            "def read(",
            'def compare(answer, gold):\n    return answer != "9" or bool(bytearray(1 << 30))\n\n\ndef read(',
        )
    )
    monkeypatch.setattr(answer_module, "WORKER", worker)
    with AnswerChecker() as checker:
        result = checker.check("\\boxed{9}", "x+1")
        assert result.status == "wrong" and "GiB" in result.detail
        assert checker.check("\\boxed{8}", "x+1").status == "right"


def test_an_answer_that_ends_its_worker_is_wrong(monkeypatch, tmp_path):
    assert ended_by("os.abort()", monkeypatch, tmp_path).status == "wrong"
    assert ended_by("sys.exit(3)", monkeypatch, tmp_path).status == "wrong"


def test_a_worker_that_is_killed_again_and_again_fails_the_check(monkeypatch, tmp_path):
    result = ended_by("os.kill(os.getpid(), signal.SIGKILL)", monkeypatch, tmp_path)
    assert result.status == "failed" and "exit status -9" in result.detail and result.reward is None


def test_a_worker_without_processor_time_fails_the_check(monkeypatch, tmp_path):
    monkeypatch.setattr(answer_module, "PATIENCE", 1)
    result = ended_by("time.sleep(60)", monkeypatch, tmp_path, limit=0.1)
    assert result.status == "failed" and "overloaded" in result.detail and result.reward is None


def ended_by(statement: str, monkeypatch, tmp_path, limit=5.0) -> Checked:
    """A check whose worker runs a statement instead of a comparison."""
    source = WORKER.read_text().replace('    compare("x+1", "1+x")  # imports\n', "")
    source = source.replace("        reply = verdict(answer, gold)\n", f"        {statement}\n")
    assert statement in source
    (tmp_path / "worker.py").write_text(source)
    monkeypatch.setattr(answer_module, "WORKER", tmp_path / "worker.py")
    with AnswerChecker(limit=limit) as checker:
        return checker.check("\\boxed{1+x}", "x+1")


def test_a_worker_that_was_killed_once_is_replaced():
    with AnswerChecker() as checker:
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"
        os.kill(only_process(checker).pid, signal.SIGKILL)
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"


def test_a_worker_that_cannot_start_fails_the_check(monkeypatch, tmp_path):
    monkeypatch.setattr(answer_module, "WORKER", tmp_path / "absent.py")
    with AnswerChecker() as checker:
        result = checker.check("\\boxed{1+x}", "x+1")
    assert result.status == "failed" and "did not start" in result.detail and "absent.py" in result.detail


def only_process(checker):
    (worker,) = checker._all
    return worker._process


def test_several_workers_check_at_once_and_keep_the_order():
    pairs = [(f"\\boxed{{x+{i}}}", f"{i % 3}+x") for i in range(12)]
    with AnswerChecker(workers=2) as checker:
        found = [result.status for result in checker.check_all(pairs)]
        processes = [worker._process for worker in checker._all]
        assert all(processes) and processes[0].pid != processes[1].pid
    assert found == ["right"] * 3 + ["wrong"] * 9
    assert all(process.returncode is not None for process in processes)


def test_threads_share_a_checker():
    with AnswerChecker() as checker, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: checker.check(f"\\boxed{{x+{i}}}", f"{i}+x").status, range(12)))
    assert set(found) == {"right"}


def test_the_workers_end_with_the_program():
    program = """
from ling_jax.rewards import AnswerChecker
checker = AnswerChecker()
assert checker.check("\\\\boxed{1+x}", "x+1").status == "right"
print(checker._all[0]._process.pid)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_an_interrupt_ends_all_checks_and_leaves_no_process():
    program = """
import os, signal, threading
from ling_jax.rewards import AnswerChecker
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a program in the background does not have
checker = AnswerChecker(limit=60, workers=2)
assert checker.check_all([("\\\\boxed{1+x}", "x+1")] * 2)[0].status == "right"
print(*(worker._process.pid for worker in checker._all if worker._process), flush=True)
threading.Timer(0.5, lambda: os.killpg(0, signal.SIGINT)).start()  # as a terminal does
checker.check_all([("\\\\boxed{10^{10^{10^{10}}}}", "3")] * 8)
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, start_new_session=True)
    assert time.monotonic() - start < 50  # not one limit
    assert done.returncode == -signal.SIGINT and done.stderr.count("Traceback") == 1
    for pid in done.stdout.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_check_of_a_checker_that_another_thread_closes_fails():
    with AnswerChecker(limit=60) as checker, ThreadPoolExecutor(1) as threads:
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"
        late = threads.submit(checker.check, HANG, "3")
        while not checker._idle.empty():
            time.sleep(0.01)
        time.sleep(0.1)
        checker.close()
        assert late.result(30).status == "failed"
        assert only_process(checker) is None


def test_a_fork_starts_its_own_worker():
    with AnswerChecker() as checker:
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"
        first = only_process(checker).pid
        child = os.fork()
        if child == 0:
            fine = checker.check("\\boxed{1+x}", "x+1").status == "right" and only_process(checker).pid != first
            checker.close()
            os._exit(0 if fine else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert checker.check("\\boxed{1+x}", "x+1").status == "right" and only_process(checker).pid == first


def test_one_process_serves_all_checks_and_ends_with_the_checker():
    with AnswerChecker() as checker:
        checker.check("#### 1", "1")
        assert only_process(checker) is None  # numbers need none
        checker.check("\\boxed{1+x}", "x+1")
        process = only_process(checker)
        checker.check("\\boxed{2+x}", "x+1")
        assert only_process(checker) is process
    assert process.returncode is not None and only_process(checker) is None


def test_an_interrupted_check_leaves_no_reply_for_the_next(monkeypatch):
    with AnswerChecker() as checker:
        checker.check("\\boxed{1+x}", "x+1")
        with monkeypatch.context() as patched:
            patched.setattr(checker._all[0], "_reply", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                checker.check("\\boxed{y}", "x+1")
        assert only_process(checker) is None
        assert checker.check("\\boxed{1+x}", "x+1").status == "right"


def test_only_a_verdict_is_a_reward():
    assert [Checked(status, "1").reward for status in ("right", "wrong", "failed")] == [1.0, 0.0, None]


def test_what_cannot_be_checked_is_refused(checker):
    with pytest.raises(ValueError, match="gold is empty"):
        checker.check("#### 1", " ")
    with pytest.raises(ValueError, match="limit is 0"):
        AnswerChecker(limit=0)
    with pytest.raises(ValueError, match="workers is 0"):
        AnswerChecker(workers=0)
