r"""Final answers: extraction from a text, and comparison with the right answer.

`AnswerChecker` is the only part of this package with side effects: it starts and kills worker processes.
"""

import atexit
import contextlib
import functools
import json
import math
import os
import queue
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from ling_jax.processes import end_worker, start_worker
from ling_jax.rewards.answer_form import same_answer

ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
BRACES = re.compile(r"\\\\(?=[{}])|\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]")
GSM8K = re.compile(r"####([^\n#]*\d[^\n#]*|[^\n#]+\Z)")
MARK = re.compile(r"####|</?answer>|\\boxed|\\fbox", re.IGNORECASE)
WORKER = Path(__file__).with_name("answer_worker.py")
MAX_BARE = 200  # characters of a text without marks that may be a bare answer; our choice
MAX_GOLD = 500  # characters; our choice
START_SECONDS = 60.0  # for the library's import on a busy machine
PATIENCE = 20  # wall time over processor time at which the machine counts as overloaded; our choice


class Checked(NamedTuple):
    """The result of a check."""

    status: str  # "right", "wrong", or "failed" (no verdict, because of the machine)
    answer: str | None
    detail: str = ""  # reason if the answers were not compared

    @property
    def reward(self) -> float | None:
        """1 if right, 0 if wrong, None if the check failed, which says nothing about the answer."""
        return {"right": 1.0, "wrong": 0.0}.get(self.status)


def extract_answer(text: str) -> str | None:
    r"""The final answer of a text: the last `<answer>…</answer>`, else the last `\boxed{…}`, else the line after ####.

    A box inside `<answer>` replaces the words around it; several different boxes form a list. Reasoning up to
    `</think>` is skipped; unclosed reasoning and an empty box give None. `#### 42` is GSM8K's form: the last one counts
    that has a digit or ends the text. A short text without these marks is itself the answer; numbers are not extracted
    from sentences.
    """
    text = text.rpartition("</think>")[2].strip()
    if "<think>" in text:
        return None
    blocks = ANSWER.findall(text)
    if blocks:
        boxes = list(dict.fromkeys(box.strip() for box in _boxes(blocks[-1])))
        answer = ", ".join(boxes) if boxes else blocks[-1]
    elif not MARK.search(text):
        answer = text if len(text) <= MAX_BARE else ""
    else:
        boxes, lines = _boxes(text), GSM8K.findall(text)
        answer = (boxes[-1] if boxes else "") or (lines[-1] if lines else "")
    return answer.strip() or None


def gold_answer(answer: Any) -> str:
    """The right answer of a record: the text after its last #### (as in GSM8K) or all of it; numbers as text.

    Raises ValueError for a value that answers cannot be compared with; the caller adds file and line.
    """
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and math.isfinite(answer):
        return str(answer)
    if not isinstance(answer, str):
        raise ValueError(f"answer is {answer!r}; expected text, or a number")
    gold = answer.rpartition("####")[2].strip()
    if not gold:
        raise ValueError(
            f"answer is {_shown(answer)}; expected the right answer, or a solution that ends in #### and it"
        )
    if "\n" in gold or len(gold) > MAX_GOLD:
        raise ValueError(f"answer is {_shown(answer)}; expected the right answer alone, or behind #### at the end")
    if extract_answer(f"\\boxed{{{gold}}}") != gold:
        raise ValueError(f"answer is {_shown(answer)}; expected braces that match, and no markers of reasoning")
    return gold


def _shown(text: str) -> str:
    return repr(text if len(text) < 60 else f"{text[:20]}…{text[-35:]}")


class AnswerChecker:
    """Compares final answers with right answers; a context manager that any number of threads can share.

        with AnswerChecker(workers=4) as checker:
            rewards = [result.reward for result in checker.check_all(pairs)]

    This process compares numbers, words, lists, intervals and the like, exactly and in well under a millisecond.
    Expressions go to sympy in one of `workers` processes, which start on first use and are reused. They are not forks,
    so `__main__` needs no guard.

    An answer is wrong if it needs more than `limit` seconds of processor time or too much memory, or ends its worker:
    otherwise a policy could avoid verdicts. If a worker cannot start, is killed from outside or gets no processor time,
    the check runs once more and then fails.
    """

    def __init__(self, limit: float = 5.0, workers: int = 1):  # our choices; one second covers nearly every answer
        if not 0 < limit < float("inf"):
            raise ValueError(f"limit is {limit}; expected seconds above 0")
        if workers < 1:
            raise ValueError(f"workers is {workers}; expected at least 1")
        self.limit, self.workers = limit, workers
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._all = [_Worker() for _ in range(workers)]
        for worker in self._all:
            self._idle.put(worker)
        atexit.register(self.close)

    def __enter__(self) -> "AnswerChecker":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; a later check starts new ones."""
        for worker in self._all:
            worker.close()
        atexit.unregister(self.close)

    def check(self, text: str, gold: str) -> Checked:
        r"""Whether the final answer of `text` is `gold`: "18", "\\frac{1}{2}" or a text with answer marks.

        Raises ValueError if `gold` is empty.
        """
        if not gold.strip():
            raise ValueError("gold is empty; expected the right answer: a task without one cannot be checked")
        answer = extract_answer(text)
        if answer is None:
            return Checked("wrong", None, "no answer")
        gold, compare = extract_answer(gold) or gold, _Comparison(self)
        try:
            same = same_answer(answer, gold, compare)
        except _Undecided as undecided:
            return Checked(undecided.status, answer, undecided.detail)
        return Checked("right" if same else "wrong", answer, "" if same else compare.detail)

    def check_all(self, pairs: Iterable[tuple[str, str]]) -> list[Checked]:
        """`check` of each (text, gold), in order, on all workers in parallel."""
        pairs = list(pairs)
        if self.workers == 1 or len(pairs) < 2:
            return [self.check(text, gold) for text, gold in pairs]
        with ThreadPoolExecutor(self.workers) as threads:
            try:
                return list(threads.map(lambda pair: self.check(*pair), pairs))
            except BaseException:  # interrupted: closing the workers ends the checks in progress
                self.close()
                raise


@functools.cache
def shared_checker() -> AnswerChecker:
    """The checker shared by all evaluations of this process; its worker ends with the process."""
    return AnswerChecker()


class _Undecided(Exception):
    """A comparison without a verdict."""

    def __init__(self, status: str, detail: str):
        super().__init__(detail)
        self.status, self.detail = status, detail


class _Comparison:
    """The `answer_form.Equal` of one check, whose expressions share its processor time."""

    def __init__(self, checker: AnswerChecker):
        self.checker, self.left, self.detail = checker, checker.limit, ""

    def __call__(self, answer: str, gold: str) -> bool:
        limit, worker = self.checker.limit, self.checker._idle.get()
        try:
            for attempt in (1, 2):
                reply = worker.compare(answer, gold, self.left)
                if reply.status != "failed" and not (reply.status == "died" and attempt == 1):
                    break
        finally:
            self.checker._idle.put(worker)
        if reply.status == "late":
            raise _Undecided("wrong", f"took longer than {limit:g} s")
        if reply.status == "died":
            raise _Undecided("wrong", reply.detail)
        if reply.status in ("failed", "closed"):
            raise _Undecided("failed", reply.detail)
        self.left = max(0.01, self.left - reply.seconds)
        self.detail = self.detail or reply.detail
        return reply.status == "right"


class _Reply(NamedTuple):
    status: str  # "right", "wrong"; "late", "died" (caused by the expressions); "failed", "closed" (not)
    detail: str
    seconds: float = 0.0  # of processor time


CLOSED = _Reply("closed", "the checker was closed")


class _Worker:
    """A process that compares expressions; it starts on first use."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._owner = 0  # the process that started it: a fork must not share its pipes
        self._unread = b""

    def compare(self, answer: str, gold: str, limit: float) -> _Reply:
        process = None
        try:
            process = self._started()
            process.stdin.write(json.dumps([answer, gold, limit]).encode() + b"\n")
            process.stdin.flush()
            return self._reply(limit * PATIENCE + 1)
        except (OSError, ValueError) as error:  # the worker did not start, died or wrote no JSON
            if process and process is not self._process:
                return CLOSED
            self.close()
            return _Reply("failed", f"{type(error).__name__}: {error}")
        except BaseException:  # interrupted: the next check would read a late reply
            self.close()
            raise

    def close(self) -> None:
        process, self._process, self._unread = self._process, None, b""
        if process:
            end_worker(process)

    def _started(self) -> subprocess.Popen:
        if self._process is None or self._owner != os.getpid():
            self._owner, self._unread = os.getpid(), b""
            self._process = start_worker(WORKER)
            reply = self._reply(START_SECONDS)
            if reply.status != "ready":
                raise OSError(f"the answer worker did not start: {reply.detail}; `python {WORKER}` says why")
        return self._process

    def _reply(self, seconds: float) -> _Reply:
        process, deadline = self._process, time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not wait([process.stdout], max(0.0, deadline - time.monotonic())):
                self.close()
                return _Reply("failed", f"no reply in {seconds:g} s and too little processor time: machine overloaded")
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                if process is not self._process:
                    return CLOSED
                self.close_dead()
                return _ending(process.returncode)
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return _Reply(*json.loads(line))

    def close_dead(self) -> None:
        """Closes a worker that closed its output; waits first, to get its own exit status instead of that of a kill."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self.close()


def _ending(status: int) -> _Reply:
    """The reply for a worker that ended: SIGPROF is its time limit; SIGKILL, SIGTERM and SIGINT come from outside."""
    if status == -signal.SIGPROF:
        return _Reply("late", "")
    detail = f"the answer worker died with exit status {status}"
    return _Reply("failed" if status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT) else "died", detail)


def _boxes(text: str) -> list[str]:
    r"""The contents of each closed outermost `\boxed{…}`, in order; unclosed boxes are skipped."""
    opened: list[int | None] = []  # where a box's content starts; None for a brace of any other kind
    found: list[tuple[int, str]] = []
    for match in BRACES.finditer(text):
        if match[0] == "}":
            start = opened.pop() if opened else None
            if start is not None:
                while found and found[-1][0] > start:  # inside of this one
                    found.pop()
                found.append((start, text[start : match.start()]))
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append(match.end() if match[0].startswith("\\") else None)
    return [content for _, content in found]
