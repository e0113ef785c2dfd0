"""What is written under a hidden name until it is whole, and what killed processes left of it.

`.NAME.UUID.partial` belongs to the process that holds the system's lock on it (flock). The lock ends with the process,
however that ends, so a partial file without one can be removed, and one with a lock never is.
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
    """A disk, a quota or a limit of file sizes that does not take what is written; the message is for the user."""

    def __init__(self, path: os.PathLike | str, reason: str):
        super().__init__(f"{path} cannot be written: {reason}; free space, then the same command continues")
        self.reason = reason


@contextlib.contextmanager
def write_errors(path: os.PathLike | str) -> Iterator[None]:
    """Around what writes a file or folder: the system's error of a full disk names no file, FullDisk does.

    Of blocks in blocks the outermost path is named, which is not a partial one.
    """
    try:
        yield
    except FullDisk as error:
        raise FullDisk(path, error.reason) from error
    except OSError as error:
        # numpy gives no number: "240 requested and 0 written".
        if error.errno in FULL or (error.errno is None and "requested and" in str(error)):
            raise FullDisk(path, error.strerror or str(error)) from error
        raise


def write_reason(error: BaseException) -> str:
    """What a library's error of a write says, in one line; of a full disk also what to do."""
    text = str(error)
    if full := next((said for said in map(os.strerror, FULL) if said in text), ""):
        return f"{full}; free space"
    return one_line((text.splitlines() or [type(error).__name__])[0])


def partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


@contextlib.contextmanager
def claimed(path: Path, create: Callable[[Path], object]) -> Iterator[Path]:
    """A partial file or folder beside `path`, made by `create`, locked during the block and removed if it is left.

    What killed processes left of the same name is removed first.
    """
    sweep(path.parent, path.name)
    while True:
        create(partial := partial_name(path))
        with contextlib.ExitStack() as stack:
            try:
                held = stack.enter_context(locked(partial))
            except FileNotFoundError:
                held = True
            if held and not partial.exists():  # another process swept it before it was locked
                continue
            try:
                yield partial
            finally:
                _remove(partial)
            return


def sweep(folder: Path, name: str = "*") -> None:
    """Removes partial files and folders in a folder that no process holds: of one name, or all of them."""
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
    """Holds the lock of a file or folder during the block; yields False where its file system has no such locks.

    Raises BlockingIOError where another process has it and this one does not wait.
    """
    # NFS locks only what is open for writing, which no folder is.
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
