"""What a program takes: seconds, CPU seconds and memory of its own, its children included."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SAMPLE_SECONDS = 0.02
OWN_MEMORY = re.compile(r"Rss(?:Anon|Shmem):\s+(\d+) kB")


class Usage(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak: int  # bytes of RssAnon + RssShmem; pages of mapped files are not counted, since the system may drop them


class Program:
    """A running Python module, killed at the end of the block if it still runs. Its output goes to `log`."""

    def __init__(self, module: str, *arguments: str, log: Path):
        self._log, self._name, self._start = log, f"{module} {' '.join(arguments)}", time.monotonic()
        with log.open("w") as out:  # a group of its own: its children are killed with it
            command = [sys.executable, "-m", module, *arguments]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._process.returncode is None:
            self._kill()

    def wait(self) -> Usage:
        """What it took to its end. Raises RuntimeError with the last lines of its output where it failed."""
        peak, ended = 0, False
        while not ended:
            peak = max(peak, sum(map(_own_memory, _descendants(self._process.pid))))
            time.sleep(SAMPLE_SECONDS)
            ended, status, used = os.wait4(self._process.pid, os.WNOHANG)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - self._start
        if self._process.returncode:
            raise RuntimeError(f"{self._name} failed:\n{self._log.read_text()[-2000:]}")
        return Usage(seconds, used.ru_utime + used.ru_stime, peak)

    def is_killed_after(self, seconds: float) -> bool:
        """False where it ended by itself before."""
        try:
            if code := self._process.wait(timeout=seconds):
                raise RuntimeError(f"{self._name} failed with {code}:\n{self._log.read_text()[-2000:]}")
            return False
        except subprocess.TimeoutExpired:
            self._kill()
            return True

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _descendants(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    with contextlib.suppress(OSError):  # it ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _descendants(int(child))
    return found


def _own_memory(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * sum(map(int, OWN_MEMORY.findall(status)))
