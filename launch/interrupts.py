"""SIGTERM and Ctrl-C end a program with one line and exit code 128 + the signal.

The loop of training saves first (ling_jax.run.stop). Elsewhere the signal is raised as an exception, so that
half-written files are removed.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

STDERR = 2
NUMBERS = (signal.SIGTERM, signal.SIGINT)
CLEAN_SECONDS = 10  # for the cleaning up; a library that ignores signals (a compiler) may take minutes


class Stopped(KeyboardInterrupt):
    """A signal ended the program where nothing has to be saved."""

    def __init__(self, number: int):
        super().__init__(f"{signal.Signals(number).name}: ended; the same command starts again")
        self.number = number


def end_at_once(number: int, frame: FrameType | None = None) -> NoReturn:
    """The handler during imports, when nothing needs cleaning up."""
    del frame
    end(Stopped(number))


def end(stopped: Stopped) -> NoReturn:
    """Prints the line of a signal and ends the process without waiting for threads."""
    with contextlib.suppress(OSError):  # Ctrl-C ends `| tee` first, and a daemon has no standard error
        os.write(STDERR, f"{stopped}\n".encode())
    os._exit(128 + stopped.number)


def raise_stopped(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of a running program; a second signal ends it at once."""
    del frame
    for other in NUMBERS:
        signal.signal(other, end_at_once)
    raise Stopped(number)


@contextlib.contextmanager
def resumable_work(how: str) -> Iterator[None]:
    """A block whose output stays after a signal; the line of the signal says `how` to continue."""
    try:
        yield
    except Stopped as stopped:
        stopped.args = (f"{signal.Signals(stopped.number).name}: ended; {how}",)
        raise


def handle_signals() -> None:
    """Makes signals raise `Stopped` in the main thread.

    They end the process if the main thread does not return from a library within `CLEAN_SECONDS`.
    """
    for number in NUMBERS:
        signal.signal(number, raise_stopped)
    receives, sends = os.pipe()
    os.set_blocking(sends, False)
    signal.set_wakeup_fd(sends, warn_on_full_buffer=False)
    threading.Thread(target=_end_late, args=(receives,), name="signals", daemon=True).start()


def _end_late(receives: int) -> None:
    """Ends the process `CLEAN_SECONDS` after a signal, unless other code handles it."""
    while True:
        number = os.read(receives, 1)[0]
        if number in NUMBERS and signal.getsignal(number) in (raise_stopped, end_at_once):
            time.sleep(CLEAN_SECONDS)
            end(Stopped(number))
