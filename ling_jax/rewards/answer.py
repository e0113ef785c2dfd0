"""Final answers: finding one in a text, and whether it is the right one.

The only module of this package that touches the world: `AnswerChecker` has a process, which it can kill.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from fractions import Fraction
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
GSM8K = re.compile(r"####[ \t]*([-+$]*\.?\d(?:[\d.,]*\d)?)")
NUMBER = re.compile(r"([-+]?)\\?\$?((?:\d{1,3}(?:,\d{3})+|\d{1,100})(?:\.\d{0,100})?|\.\d{1,100})\.?")
WORKER = Path(__file__).with_name("answer_worker.py")
START_SECONDS = 60.0  # to import the library, on a busy machine


class Checked(NamedTuple):
    status: str  # "right", "wrong", "no_answer", "timeout" or "error"
    answer: str | None
    detail: str = ""  # what failed

    @property
    def reward(self) -> float | None:
        """1 if right, 0 if wrong or without an answer; None if the check failed: that says nothing of the answer."""
        return {"right": 1.0, "wrong": 0.0, "no_answer": 0.0}.get(self.status)


def extract_answer(text: str) -> str | None:
    """The final answer: what the last `<answer>…</answer>`, else `\\boxed{…}` holds, else the number after ####.

    A box inside `<answer>` is the answer without the words around it. Reasoning up to `</think>` is not looked at; one
    that is not closed leaves no answer, as does an empty box. `#### 42`, the last of them, is GSM8K's form.
    """
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    blocks = ANSWER.findall(text)
    if blocks:
        box = _last_box(blocks[-1])
        answer = blocks[-1] if box is None else box
    else:
        numbers = GSM8K.findall(text)
        answer = _last_box(text) or (numbers[-1] if numbers else "")
    return answer.strip() or None


def parse_number(text: str) -> Fraction | None:
    """The value of plain decimal digits such as -7, 1,234.50, $3 or `42.`; None for any other text."""
    match = NUMBER.fullmatch(text.strip())
    return Fraction(match[1] + match[2].replace(",", "").rstrip(".")) if match else None


class AnswerChecker:
    """Compares final answers with the right ones; a context manager.

        with AnswerChecker() as checker:
            rewards = [result.reward for result in checker.check_all(pairs)]

    Two plain numbers are compared exactly and equal texts are equal, at no cost. Anything else goes to the library
    math-verify in one process, which starts when first needed, is used again, and is killed and started anew where a
    check takes more than `limit` seconds (its start is not counted). It is no fork, and needs no guard of `__main__`.
    Not for several threads at once.
    """

    def __init__(self, limit: float = 5.0):  # our choice, and math-verify's own
        if not 0 < limit < float("inf"):
            raise ValueError(f"limit is {limit}; expected seconds above 0")
        self.limit = limit
        self._worker: subprocess.Popen | None = None
        self._unread = b""

    def __enter__(self) -> "AnswerChecker":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process; a later check starts another."""
        worker, self._worker, self._unread = self._worker, None, b""
        if worker:
            worker.kill()
            worker.wait()
            worker.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()

    def check(self, text: str, gold: str) -> Checked:
        """Whether the final answer of `text` is `gold`, which is an answer alone ("18", "\\frac{1}{2}")."""
        if not gold.strip():
            raise ValueError("gold is empty; expected the right answer: a task without one cannot be checked")
        answer = extract_answer(text)
        if answer is None:
            return Checked("no_answer", None)
        numbers = parse_number(answer), parse_number(gold)
        if answer == gold.strip() or None not in numbers:
            same = answer == gold.strip() or numbers[0] == numbers[1]
            return Checked("right" if same else "wrong", answer)
        status, detail = self._compare(answer, gold.strip())
        return Checked(status, answer, detail)

    def check_all(self, pairs: Iterable[tuple[str, str]]) -> list[Checked]:
        """`check` of each (text, gold), in order."""
        return [self.check(text, gold) for text, gold in pairs]

    def _compare(self, answer: str, gold: str) -> tuple[str, str]:
        try:
            worker = self._started()
            worker.stdin.write(json.dumps([answer, gold, self.limit]).encode() + b"\n")
            worker.stdin.flush()
            return self._reply(worker, self.limit, "timeout")
        except (OSError, ValueError) as error:  # a worker that cannot be started, died, or does not speak JSON
            self.close()
            return "error", f"{type(error).__name__}: {error}"
        except BaseException:  # interrupted: a late reply would be taken for the next one's
            self.close()
            raise

    def _started(self) -> subprocess.Popen:
        if self._worker is None:
            # -P: files beside the worker's must not hide modules of the same name.
            command = [sys.executable, "-P", "-W", "ignore", str(WORKER)]
            self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            status, detail = self._reply(self._worker, START_SECONDS, "no start")
            if status != "ready":
                raise OSError(f"the answer worker did not start: {detail}; `python {WORKER}` says why")
        return self._worker

    def _reply(self, worker: subprocess.Popen, seconds: float, late: str) -> tuple[str, str]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not wait([worker.stdout], max(0.0, deadline - time.monotonic())):
                self.close()
                return late, f"no reply in {seconds:g} s"
            chunk = os.read(worker.stdout.fileno(), 1 << 16)
            if not chunk:
                self.close()
                return "error", f"the answer worker died with exit status {worker.returncode}"
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        status, detail = json.loads(line)
        return status, detail


def _last_box(text: str) -> str | None:
    """What the last closed `\\boxed{…}` holds, an outer one before those in it."""
    opened: list[int | None] = []  # where a box's content starts; None for a brace of any other kind
    last = None
    for match in BRACES.finditer(text):
        if match[0] == "}":
            start = opened.pop() if opened else None
            last = last if start is None else text[start : match.start()]
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append(match.end() if match[0].startswith("\\") else None)
    return last
