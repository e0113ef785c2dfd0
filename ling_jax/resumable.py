"""Output that a program goes on with after an interruption: the folder `.NAME.partial` beside it.

A record in the folder says what the output is of; only the same is gone on with.
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
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def resumable_file(target: Path, record: dict[str, Any], *, resume: bool) -> Iterator[Path]:
    """A file that may hold the beginning of `target` and takes its name when the block ends well, else stays.

    What an interrupted program left is continued where its record is the same, and removed if not `resume`.
    Raises ValueError naming what differs, and OSError where another process writes it.
    """
    partial = partial_folder(target)
    with write_errors(target), resumed(partial, record, resume=resume):
        content = partial / CONTENT
        content.touch()
        yield content
        content.replace(target)
        shutil.rmtree(partial)


def keep_whole_lines(file: BinaryIO, batch: int) -> int:
    """Cuts a file behind the last whole batch of its lines of JSON objects; returns how many lines are left.

    The file is then at its end.
    """
    lines, end = [], 0
    for line in file:
        try:
            if not line.endswith(b"\n"):
                break
            parse_object(line, "")
        except ValueError:  # of a machine that lost power
            break
        lines.append(len(line))
    kept = len(lines) // batch * batch
    end = sum(lines[:kept])
    file.truncate(end)
    file.seek(end)
    return kept


@contextlib.contextmanager
def resumed(partial: Path, record: dict[str, Any], *, resume: bool) -> Iterator[None]:
    """A folder of this record, made where it is not there, and this process's own during the block.

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
    """Writes the record of a folder that is new. Raises ValueError where it has another one, or files without one."""
    _check_ours(partial)
    if (partial / RECORD).exists():
        check_record(partial, record)
    else:
        write_json(record, partial / RECORD)


@contextlib.contextmanager
def _only_writer(partial: Path) -> Iterator[None]:
    """Raises OSError where another process writes into the folder."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(partial, wait=False))
        except BlockingIOError:
            raise OSError(f"{partial} is being written by another process; wait for it") from None
        yield


def _check_ours(partial: epath.PathLike) -> None:
    """Raises ValueError where the folder holds something and has no record."""
    if not is_remote(partial):
        sweep(partial)
    if names_in(partial) and not (partial / RECORD).exists():
        raise ValueError(f"{partial} is no interrupted output; remove it, or name another target")


def check_record(folder: epath.PathLike, record: dict[str, Any]) -> None:
    """Raises ValueError naming what differs from the record of the folder."""
    found = read_object(folder / RECORD, "the record of an interrupted output; start anew with --noresume")
    record = json.loads(json.dumps(record))
    for key in dict.fromkeys((*record, *found)):
        if found.get(key) != record.get(key):
            raise ValueError(
                f"{folder} was begun with another {key}: {found.get(key)!r:.80}, now {record.get(key)!r:.80}; go on "
                "with that, or start anew with --noresume"
            )
