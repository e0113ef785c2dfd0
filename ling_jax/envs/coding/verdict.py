"""Verdicts on code that a policy wrote: it runs in a box, and what it did is judged out here.

What is promised: expected values never enter the box. The report carries a nonce that no foreign code has seen, and
foreign code runs in children of the process that reports, which hold nothing but a pipe to it. Time-outs, exceptions,
early exits, output without end, values that JSON cannot hold and forged reports are wrong answers.

What is not: a function of foreign code may know that it is judged, and what it was called with before. A test runs in
one process with the code that it tests. Code that looks at frames, replaces what judges, or leaves early is denied and
flagged (inside/verify.py); that it finds another way cannot be excluded.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ling_jax.sandbox import Box, Limits, Result

PROGRAM = (Path(__file__).parent / "inside" / "verify.py").read_text()
PYTHON = ("python3", "-I", "-S", "-B", "-c", PROGRAM)  # alone: no variables, no site-packages, no bytecode files
CALL_SECONDS = 5.0  # our choice: for all calls of a function together; a right answer needs milliseconds
MODULE_SECONDS, TESTS_SECONDS = 10.0, 60.0  # our choice: for the tests of a module, and for all
SPARE_SECONDS = 5.0  # our choice: for the interpreter's start, beside those
CALL_LIMITS = Limits(seconds=CALL_SECONDS + SPARE_SECONDS, memory_bytes=256 << 20, disk_bytes=1 << 20, processes=16)
TEST_LIMITS = Limits(seconds=TESTS_SECONDS + SPARE_SECONDS)
MAX_SOURCE_BYTES = 1 << 16  # our choice: of a function
NO_REPORT = "what came back is no report of the verifier"


class Case(NamedTuple):
    """Arguments of a call, and the value that it has to return: JSON values."""

    arguments: Sequence[Any]
    expected: Any


class Verdict(NamedTuple):
    """What a verifier found."""

    passed: tuple[bool, ...]  # case by case, or test by test
    detail: str  # the first thing that was wrong; "" where nothing was
    flags: tuple[str, ...]  # what was suspicious
    complete: bool = False  # whether every call returned; on a busy machine a right one may time out

    @property
    def outcome(self) -> float:
        """1 where all passed, and there was something to pass."""
        return float(bool(self.passed) and all(self.passed))

    @property
    def share(self) -> float:
        """Of what passed."""
        return sum(self.passed) / max(1, len(self.passed))


def judge_function(box: Box, source: str, name: str, cases: Sequence[Case]) -> Verdict:
    """Whether the function `name` of a source returns the expected value in each case, of exactly the expected type.

    The box is fresh, with `CALL_LIMITS`. True is not 1, 1.0 is not 1; a tuple is a list, since JSON has no other.
    Keys of dicts have to be text. Raises SandboxError where the sandbox fails.
    """
    if len(source.encode(errors="replace")) > MAX_SOURCE_BYTES:
        return _failed(cases, f"the source has more than {MAX_SOURCE_BYTES} bytes")
    request = {"kind": "calls", "source": source, "name": name, "calls": [case.arguments for case in cases]}
    stdin, nonce = _request(request, CALL_SECONDS)
    result = box.run(PYTHON, stdin=stdin)
    found = _report(result, nonce)
    if found is None or not isinstance(found[0], list):
        return _failed(cases, _ending(result), () if found is None else found[1])
    report, flags = found
    passed = [i < len(report) and _is_expected(report[i], case.expected) for i, case in enumerate(cases)]
    wrong = passed.index(False) if False in passed else None
    detail = "" if wrong is None else _wrong_call(report, wrong)
    return Verdict(tuple(passed), detail, flags, complete=len(report) == len(cases))


def judge_tests(box: Box, modules: Mapping[str, str], tests: Sequence[str]) -> Verdict:
    """Which tests, as module.Class.method, pass on the files of a fresh box, which has `TEST_LIMITS`.

    `modules` are the tests' modules by name, which are not written to the box. The tests are
    judged module by module, so `passed` is in that order. Raises SandboxError.
    """
    tests = sorted(tests, key=lambda test: test.rsplit(".", 2)[0])  # module by module
    request = {"kind": "tests", "modules": dict(modules), "tests": tests, "module_seconds": MODULE_SECONDS}
    stdin, nonce = _request(request, TESTS_SECONDS)
    result = box.run(PYTHON, stdin=stdin)
    found = _report(result, nonce)
    if found is None or not isinstance(found[0], list) or len(found[0]) != len(tests):
        return _failed(tests, _ending(result), () if found is None else found[1])
    report, flags = found
    passed = [status == "passed" for status in report]
    flags = (*flags, "what judges tests was replaced") if "tampered" in report else flags
    wrong = next((f"{test}: {status}" for test, status in zip(tests, report, strict=True) if status != "passed"), "")
    return Verdict(tuple(passed), wrong, flags)


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal, with the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def _request(request: dict[str, Any], seconds: float) -> tuple[bytes, str]:
    """(stdin, nonce) of the program in the box."""
    body, nonce = json.dumps(request | {"seconds": seconds}).encode(), secrets.token_hex(16)
    return b"%08d" % len(body) + body + nonce.encode(), nonce


def _report(result: Result, nonce: str) -> tuple[Any, tuple[str, ...]] | None:
    """(report, flags) of the one line that has the nonce; None where there is none, or another line beside it."""
    lines = result.stdout.split(b"\n")
    if result.status != "exited" or len(lines) != 2 or lines[1] or not lines[0].startswith(nonce.encode() + b" "):
        return None
    try:
        found = json.loads(lines[0][len(nonce) + 1 :], parse_constant=_refuse)
        return found["report"], tuple(map(str, found["flags"]))
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _refuse(name: str) -> None:
    raise ValueError(name)


def _ending(result: Result) -> str:
    if result.status == "exited":
        return f"{NO_REPORT} (exit code {result.code})"
    return f"{NO_REPORT} ({result.status} after {result.seconds:.1f} s)"


def _failed(of: Sequence[Any], detail: str, flags: tuple[str, ...] = ()) -> Verdict:
    return Verdict((False,) * len(of), detail, flags)


def _is_expected(found: Any, expected: Any) -> bool:
    try:
        return isinstance(found, list) and len(found) == 2 and found[0] == "value" and same(found[1], expected)
    except RecursionError:
        return False


def _wrong_call(report: list[Any], number: int) -> str:
    if number >= len(report):
        return f"call {number + 1} did not return"
    kind = report[number][0] if isinstance(report[number], list) and report[number] else "?"
    words = {"value": "returned another value", "raised": "raised an exception", "broken": "there was no such function"}
    return f"call {number + 1}: {words.get(kind, 'was not reported')}"
