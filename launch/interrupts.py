"""SIGTERM and Ctrl-C to a program: one line and exit code 128 + the signal, whatever it is doing.

In the loop of training they save first (ling_jax.train.stop). Everywhere else there is nothing to save: the signal is
raised as an exception, so that what is half-written is removed on the way out.
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
CLEAN_SECONDS = 10  # for the way out; a library that does not look at signals (a compiler) may take minutes


class Stopped(KeyboardInterrupt):
    """A signal that ended the program before its work began, or in the middle of what needs no save."""

    def __init__(self, number: int):
        super().__init__(f"{signal.Signals(number).name}: ended; the same command starts again")
        self.number = number


def end_at_once(number: int, frame: FrameType | None = None) -> NoReturn:
    """A handler for the time in which modules are imported, when nothing is to be cleaned up."""
    del frame
    end(Stopped(number))


def end(stopped: Stopped) -> NoReturn:
    """No waiting for threads that compile or read."""
    with contextlib.suppress(OSError):  # Ctrl-C ends `| tee` first, and a daemon has no standard error
        os.write(STDERR, f"{stopped}\n".encode())
    os._exit(128 + stopped.number)


def raise_stopped(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of a running program. A second signal, or a way out that takes too long, ends it at once."""
    del frame
    for other in NUMBERS:
        signal.signal(other, end_at_once)
    raise Stopped(number)


@contextlib.contextmanager
def resumable_work(how: str) -> Iterator[None]:
    """Around work whose output stays when it is interrupted: the line about a signal says `how` it goes on."""
    try:
        yield
    except Stopped as stopped:
        stopped.args = (f"{signal.Signals(stopped.number).name}: ended; {how}",)
        raise


def handle_signals() -> None:
    """Signals of this process raise `Stopped` in the main thread; where that one does not come back from a library in
    `CLEAN_SECONDS`, they end the process."""
    for number in NUMBERS:
        signal.signal(number, raise_stopped)
    receives, sends = os.pipe()
    os.set_blocking(sends, False)
    signal.set_wakeup_fd(sends, warn_on_full_buffer=False)
    threading.Thread(target=_end_late, args=(receives,), name="signals", daemon=True).start()


def _end_late(receives: int) -> None:
    """Ends the process some time after a signal, unless a handler of somebody else has it."""
    while True:
        number = os.read(receives, 1)[0]
        if number in NUMBERS and signal.getsignal(number) in (raise_stopped, end_at_once):
            time.sleep(CLEAN_SECONDS)
            end(Stopped(number))
