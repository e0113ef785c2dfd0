"""Stopping a run from outside."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and Ctrl-C add their number to; a second one ends the process at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGTERM, signal.SIGINT)

    def note(number, frame):
        del frame
        if received:
            os._exit(128 + number)  # no waiting for threads
        received.append(number)
        print(f"{signal.Signals(number).name}: saving after this step; once more ends at once", flush=True)

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, before[number])
