"""Signals that stop a run."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO


@contextlib.contextmanager
def stop_signals(
    when: str = "after this step", then: Callable[[int], None] = lambda number: None
) -> Iterator[list[int]]:
    """Yields a list to which SIGTERM, Ctrl-C and SIGHUP add their number; a second signal ends the process at once.

    `when` says in the message when the run saves, and `then(number)` is called after the first signal. A terminal that
    closes sends SIGHUP, maybe twice, which counts once; nohup ignores it. Ctrl-C ends every program of a pipeline, and
    in `run | tee log` the reader ends first. So after the first signal errors of stdout and stderr are ignored, and the
    run still saves.
    """
    received: list[int] = []  # also of others: the caller may add to it
    own: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def note(number, frame):
        del frame
        if own:
            if number != signal.SIGHUP:
                os._exit(128 + number)  # without waiting for threads
            return
        own.append(number)
        received.append(number)
        sys.stdout, sys.stderr = _lenient(sys.stdout), _lenient(sys.stderr)
        print(f"{signal.Signals(number).name}: saving {when}; once more ends at once", flush=True)
        then(number)

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _lenient(stream: TextIO | None) -> "TextIO | _Lenient | None":
    """A stream that ignores its errors; streams that are no files, such as a notebook's, are returned as they are."""
    return _Lenient(stream) if isinstance(stream, io.TextIOWrapper) else stream


class _Lenient:
    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        # RuntimeError: the signal interrupted a write of the same buffer.
        with contextlib.suppress(OSError, RuntimeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
