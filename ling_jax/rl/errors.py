"""Failures of the parts of a run, as they happen: a line each in errors.jsonl."""

import collections
import json
import threading
import time
from typing import Any

from etils import epath

from ling_jax.paths import append

ERRORS = "errors.jsonl"
LAST = 3  # failures of a part that the end of a run repeats


class ErrorLog:
    """Writes failures to `ERRORS` in a workdir; without one it keeps the last ones only. Threads may share it."""

    def __init__(self, workdir: epath.Path | None):
        self._path = workdir and workdir / ERRORS
        self._last: dict[str, collections.deque[str]] = {}
        self._writing = threading.Lock()

    def tell(self, part: str, error: str, **about: Any) -> None:
        """`note`, and a line on the terminal."""
        told = "".join(f" {name}={value}" for name, value in about.items())
        print(f"{part} failed:{told} {error}", flush=True)
        self.note(part, error, **about)

    def note(self, part: str, error: str, **about: Any) -> None:
        """A failure of a part ("session", "reward", "trainer", "sync", "engine 0"); `about` is what it concerns."""
        line = json.dumps({"time": time.time(), "part": part, "error": error} | about) + "\n"
        with self._writing:
            self._last.setdefault(part, collections.deque(maxlen=LAST)).append(error)
            if self._path:
                append(self._path, line.encode())

    def last_lines(self) -> str:
        """The last failures of each part, a line each; "" where there were none."""
        return "\n".join(f"{part}: {error}" for part, errors in self._last.items() for error in errors)
