"""Messages of programs: warnings, values and sizes as text, and the known name that is nearest to another."""

import contextlib
import difflib
import reprlib
import sys
import threading
from collections.abc import Iterable
from typing import Any

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 100
SHORT.maxdict = SHORT.maxlist = SHORT.maxlevel = 4
PRINT_SECONDS = 5  # our choice


def warn(text: str) -> None:
    """Prints a warning line to stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def print_last(text: str) -> None:
    """Prints to stderr before a process ends itself; it waits at most `PRINT_SECONDS` for the reader of a pipe."""

    def write() -> None:
        with contextlib.suppress(OSError, ValueError):  # closed
            print(text, file=sys.stderr, flush=True)

    writer = threading.Thread(target=write, name="last line", daemon=True)
    writer.start()
    writer.join(PRINT_SECONDS)


def one_line(text: str, limit: int = 200) -> str:
    """A text from a file for a message: escaped if it has line breaks, and cut to `limit` characters."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= limit else f"{text[:limit]}…"


def shown(value: Any) -> str:
    """A value from a file for a message: short and on one line."""
    try:
        return one_line(SHORT.repr(value))
    except ValueError:  # Python prints no number with more than 4300 digits
        return "a number of thousands of digits"


def error_text(error: BaseException) -> str:
    """An exception for a message, such as "KeyError: 'answer'"."""
    return f"{type(error).__name__}: {error}"


def size_text(nbytes: int) -> str:
    """A number of bytes for people, such as "1.50 GB"."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} bytes"


def count_text(count: float) -> str:
    """A number of parameters or tokens for people, such as "1.50B"."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return str(int(count))


def nearest(word: str, known: Iterable[str]) -> str:
    """The text ", did you mean 'x'?" for the closest known word; "" if no word is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
