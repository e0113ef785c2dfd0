"""Output that a program continues after an interruption, from the folder `.NAME.partial` beside it.

A record in the folder describes the output. A program continues only an output of the same record.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from ling_jax.files import parse_object, read_object, write_json
from ling_jax.partials import locked, sweep, write_errors
from ling_jax.paths import is_remote, names_in

RECORD = ".record.json"
CONTENT = "content"


def partial_folder(target: Path) -> Path:
    """The folder `.NAME.partial` of a target."""
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def resumable_file(target: Path, record: dict[str, Any], *, resume: bool) -> Iterator[Path]:
    """Yields a file that may hold the beginning of `target`; it gets that name if the block ends well, else it stays.

    The output of an interrupted program with the same record is continued; without `resume` it is removed.
    Raises ValueError that names the difference of the records, and OSError where another process writes the file.
    """
    partial = partial_folder(target)
    with write_errors(target), resumed(partial, record, resume=resume):
        content = partial / CONTENT
        content.touch()
        yield content
        content.replace(target)
        shutil.rmtree(partial)


def keep_whole_lines(file: BinaryIO) -> int:
    """Cuts a file after its last whole line with a JSON object; returns the number of lines that are left.

    The position in the file is then its end.
    """
    kept, end = 0, 0
    for line in file:
        try:
            if not line.endswith(b"\n"):
                break
            parse_object(line, "")
        except ValueError:  # the machine lost power
            break
        kept, end = kept + 1, end + len(line)
    file.truncate(end)
    file.seek(end)
    return kept


@contextlib.contextmanager
def resumed(partial: Path, record: dict[str, Any], *, resume: bool) -> Iterator[None]:
    """Makes the folder of a record if it does not exist, and locks it during the block.

    Raises as `resumable_file`.
    """
    if partial.is_dir() and not resume:
        with _only_writer(partial):
            _check_ours(partial)
            shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    with _only_writer(partial):
        begin(partial, record)
        yield


def begin(partial: epath.PathLike, record: dict[str, Any]) -> None:
    """Writes the record of a new folder. Raises ValueError where it has another record, or files without one."""
    _check_ours(partial)
    if (partial / RECORD).exists():
        check_record(partial, record)
    else:
        write_json(record, partial / RECORD)


@contextlib.contextmanager
def _only_writer(partial: Path) -> Iterator[None]:
    """Locks the folder during the block. Raises OSError where another process has locked it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(partial, wait=False))
        except BlockingIOError:
            raise OSError(f"{partial} is being written by another process; wait for it") from None
        yield


def _check_ours(partial: epath.PathLike) -> None:
    """Raises ValueError where the folder holds files without a record."""
    if not is_remote(partial):
        sweep(partial)
    if names_in(partial) and not (partial / RECORD).exists():
        raise ValueError(f"{partial} is no interrupted output; remove it, or name another target")


def check_record(folder: epath.PathLike, record: dict[str, Any]) -> None:
    """Raises ValueError that names the first difference from the record of the folder."""
    found = read_object(folder / RECORD, "the record of an interrupted output; start anew with --noresume")
    record = json.loads(json.dumps(record))
    for key in dict.fromkeys((*record, *found)):
        if found.get(key) != record.get(key):
            raise ValueError(
                f"{folder} was begun with another {key}: {found.get(key)!r:.80}, now {record.get(key)!r:.80}; "
                "continue with that, or start anew with --noresume"
            )
