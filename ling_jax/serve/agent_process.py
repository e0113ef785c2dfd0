"""A program that plays an episode, as a process of its own."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence

MAX_OUTPUT = 1 << 20  # bytes of an answer, and of what a program says beside it; our choice
LAST_LINES = 5  # of what it says beside its answer, for errors


class AgentProcess:
    """A command that reads `given` from its standard input and prints its answer.

    It is killed with all processes that it has started, unless these have left its process group.
    """

    def __init__(self, command: Sequence[str], given: str, environment: Mapping[str, str]):
        """Raises OSError where it cannot be started."""
        self.started = time.monotonic()
        self._files = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115
        self._files[0].write(given.encode())
        self._files[0].seek(0)
        files = dict(zip(("stdin", "stdout", "stderr"), self._files, strict=True))
        try:
            self._process = subprocess.Popen(
                command, env=os.environ | dict(environment), start_new_session=True, **files
            )
        except OSError:
            self._close()
            raise

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    @property
    def problem(self) -> str:
        """What is wrong with how it has ended, or with how much it has written; "" where nothing is."""
        if any(os.fstat(file.fileno()).st_size > MAX_OUTPUT for file in self._files[1:]):
            return f"wrote more than {MAX_OUTPUT} bytes"
        code = self._process.poll()
        if not code:
            return ""
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        return f"ended with {how}{self.last_words()}"

    @property
    def answer(self) -> str:
        """What it has printed, without blanks around it."""
        return self._text(1).strip()

    def last_words(self) -> str:
        """The last lines that it wrote to its standard error, behind a colon; "" where there are none."""
        lines = [line.strip() for line in self._text(2).splitlines() if line.strip()]
        return f": {' | '.join(lines[-LAST_LINES:])}" if lines else ""

    def end(self) -> None:
        """Kills what is left of it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    def _text(self, number: int) -> str:
        file = self._files[number]
        file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_OUTPUT))
        return file.read(MAX_OUTPUT).decode(errors="replace")

    def _close(self) -> None:
        for file in self._files:
            file.close()
