"""Partial files and folders: the hidden names of outputs until they are whole.

`.NAME.UUID.partial` belongs to the process that holds its system lock (flock). The lock ends with the process in any
case. So a partial file without a lock is left over from a killed process and may be removed.
"""

import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ling_jax.messages import one_line

OURS = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FullDisk(OSError):
    """A full disk, or a limit of a quota or of file sizes, met while `path` was written."""

    def __init__(self, path: os.PathLike | str, reason: str):
        super().__init__(f"{path} cannot be written: {reason}; free space, then the same command continues")
        self.reason = reason


@contextlib.contextmanager
def write_errors(path: os.PathLike | str) -> Iterator[None]:
    """Turns the errors of a full disk in a block that writes `path` into FullDisk, which names the path.

    In nested blocks the error names the outermost path, which is no partial one.
    """
    try:
        yield
    except FullDisk as error:
        raise FullDisk(path, error.reason) from error
    except OSError as error:
        # numpy's error has no number, only the text "240 requested and 0 written".
        if error.errno in FULL or (error.errno is None and "requested and" in str(error)):
            raise FullDisk(path, error.strerror or str(error)) from error
        raise


def write_reason(error: BaseException) -> str:
    """The reason of a library's write error in one line; for a full disk also what to do."""
    text = str(error)
    if full := next((reason for reason in map(os.strerror, FULL) if reason in text), ""):
        return f"{full}; free space"
    return one_line((text.splitlines() or [type(error).__name__])[0])


def partial_name(path: Path) -> Path:
    """A new name of a partial file or folder beside `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


@contextlib.contextmanager
def claimed(path: Path, create: Callable[[Path], object]) -> Iterator[Path]:
    """Yields a partial file or folder beside `path`, made by `create` and locked during the block.

    After the block it is removed if it still has the partial name. Those of killed processes are removed first.
    """
    sweep(path.parent, path.name)
    while True:
        create(partial := partial_name(path))
        with contextlib.ExitStack() as stack:
            try:
                held = stack.enter_context(locked(partial))
            except FileNotFoundError:
                held = True
            if held and not partial.exists():  # another process removed it before it was locked
                continue
            try:
                yield partial
            finally:
                _remove(partial)
            return


def sweep(folder: Path, name: str = "*") -> None:
    """Removes the partial files and folders of `name` (or all) in a folder that no process has locked."""
    pattern = name if name == "*" else glob.escape(name)
    for left_over in folder.glob(f".{pattern}.*.partial"):
        if not OURS.fullmatch(left_over.name) or left_over.is_symlink():
            continue
        with contextlib.suppress(OSError), locked(left_over, wait=False) as held:
            if held:
                _remove(left_over)


def _remove(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a file or folder during the block; yields False where its file system has no locks.

    Raises BlockingIOError where another process holds it, unless `wait`.
    """
    # NFS locks only files that are open for writing; a folder cannot be.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            raise
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)
