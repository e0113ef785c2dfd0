"""Renders chat templates of downloaded folders in a process that is killed if a template takes too long."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from ling_jax.processes import end_worker, start_worker

WORKER = Path(__file__).with_name("render_worker.py")
SECONDS = 5.0  # of CPU time for a text; our choice: a conversation of 400 messages takes milliseconds
SILENCE_SECONDS = 120.0  # without a reply; then the machine is at fault


class Rendered(NamedTuple):
    """A text that starts with the one before, or another text."""

    kept: int  # characters of the text before: all, or none
    added: str


class Renderer:
    """A process that starts at the first text and is reused; any number of threads may use it."""

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._worker: subprocess.Popen | None = None
        self._unread = b""

    def texts(
        self, source: str, messages: Sequence[dict], values: dict[str, Any], texts: Sequence[tuple[int, bool]]
    ) -> list[Rendered]:
        """The rendered first n messages, for each (n, whether with the generation prompt) of `texts`.

        `values` are further variables of the template; all are JSON. Raises ValueError that describes what the template
        does ("fails: …", "takes more than …").
        """
        request = {"source": source, "messages": messages, "values": values, "texts": texts, "seconds": self.seconds}
        try:
            line = json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot be given what is no JSON: {error}") from None
        with self._lock:
            try:
                found = self._answered(line, len(texts))
            except BaseException:  # a late reply would be taken for that of the next request
                self._close()
                raise
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def close(self) -> None:
        """Ends the process; a later text starts another one."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        worker, self._worker, self._unread = self._worker, None, b""
        if worker:
            end_worker(worker)

    def _answered(self, line: bytes, count: int) -> list[Rendered] | str:
        """The texts, or the problem of the template."""
        for attempt in range(2):  # a process that was killed is started again
            if self._worker is None:
                self._worker = start_worker(WORKER, stderr=subprocess.DEVNULL)
            try:
                self._worker.stdin.write(line)
                self._worker.stdin.flush()
                return self._replies(count)
            except (EOFError, BrokenPipeError):
                status = self._worker.wait()
                self._close()
                if status == -signal.SIGPROF:
                    raise ValueError(f"runs longer than {self.seconds:g} s") from None
                if attempt:
                    advice = f"`{sys.executable} {WORKER}` may say why"
                    raise ValueError(f"ends the process that renders it, with exit status {status}; {advice}") from None
        raise AssertionError("the second attempt returns or raises")

    def _replies(self, count: int) -> list[Rendered] | str:
        found = []
        while len(found) < count:
            reply = json.loads(self._line())
            if isinstance(reply, str):
                return reply
            found.append(Rendered(*reply))
        return found

    def _line(self) -> bytes:
        parts, deadline = [self._unread], time.monotonic() + SILENCE_SECONDS
        while b"\n" not in parts[-1]:
            if not wait([self._worker.stdout], max(0.0, deadline - time.monotonic())):
                raise ValueError(f"gives no text in {SILENCE_SECONDS:g} s; the machine may be out of memory")
            chunk = os.read(self._worker.stdout.fileno(), 1 << 20)
            if not chunk:
                raise EOFError
            parts.append(chunk)
        last, _, self._unread = parts.pop().partition(b"\n")
        return b"".join([*parts, last])


RENDERER = Renderer()
atexit.register(RENDERER.close)
