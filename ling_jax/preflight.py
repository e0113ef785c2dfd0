"""Checks of a disk before long work: names, permissions, renames, space and open files.

Every process of a run checks for itself, so that an output which one of them cannot write ends all in the first second.
Object stores have none of these limits.
"""

import math
import os
import resource
import shutil
from collections.abc import Collection
from pathlib import Path

from ling_jax.messages import size_text
from ling_jax.partials import FullDisk, claimed, partial_name, write_errors
from ling_jax.paths import as_path, check_output_name, check_writable, is_remote

MIN_OPEN_FILES = 256  # our choice: for libraries, logs, tokens and the files of a checkpoint
WANTED_OPEN_FILES = 2**16  # our choice
CGROUP = Path("/sys/fs/cgroup")  # of a container, which sees its own at the top


def check_folder(path: os.PathLike | str) -> None:
    """Raises OSError or ValueError where a folder cannot be made at `path`, or cannot be written to.

    It writes, renames and removes a file there, or in the nearest existing parent.
    """
    if is_remote(path):
        check_output_name(as_path(path))
        check_writable(as_path(path))
        return
    folder = _checked(path)
    if folder == folder.parent:
        raise ValueError(f"{path} is the root of the file system; name a folder in it")
    above = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not above.exists():
        raise FileNotFoundError(
            f"{above} is a link to {os.readlink(above)}, which does not exist; remove the link, or name another folder"
        )
    if not above.is_dir():
        raise NotADirectoryError(f"{above} is not a folder; name another place")
    _write_and_rename(above)


def check_new(path: os.PathLike | str) -> None:
    """`check_folder` of the parent of a file or folder that will be written, and a check of its own name."""
    if is_remote(path):
        check_output_name(as_path(path))
        check_writable(as_path(path).parent)
        return
    _checked(path)
    real = Path(path).expanduser().resolve()
    if real == real.parent:
        raise ValueError(f"{path} is the root of the file system; name something in it")
    partial = partial_name(real)
    if len(os.fsencode(partial.name)) > 255:
        raise OSError(f"the last part of {path} is too long for a file: File name too long; name a shorter one")
    check_folder(real.parent)


def check_space(folder: os.PathLike | str, nbytes: int, what: str) -> None:
    """Raises OSError where the disk of a folder lacks space for `nbytes`; `what` names their use in the message."""
    if is_remote(folder):
        return
    if missing := missing_space(folder, nbytes):
        raise OSError(
            f"{folder}: {size_text(missing)} of disk are missing for {what}, which take {size_text(nbytes)}; free "
            "space, then start the same command again, or name a folder on a larger disk"
        )


def missing_space(folder: os.PathLike | str, nbytes: int) -> int:
    """The bytes that the disk of a folder lacks for `nbytes`; 0 if it has them. The folder need not exist yet."""
    path = Path(folder).expanduser().absolute()
    above = next(parent for parent in (path, *path.parents) if parent.exists())
    return max(0, nbytes - shutil.disk_usage(above).free)


def address_space_left() -> float:
    """Bytes that `ulimit -v` leaves to this process; infinity without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or not (status := Path("/proc/self/statm")).exists():
        return math.inf
    return max(limit - int(status.read_text().split()[0]) * resource.getpagesize(), 0)


def available_memory() -> float:
    """Bytes that the programs of this machine, container or `ulimit -v` may still take; infinity where nothing says so.

    Memory that holds files' contents counts as free, and so does swap.
    """
    found = [address_space_left()]
    if (machine := Path("/proc/meminfo")).exists():
        sizes = dict(line.split(":") for line in machine.read_text().splitlines())
        found.append(sum(int(sizes[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree")))
    limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        found.append(max(int(most) - int(used.read_text()), 0))
    return min(found)


def check_available_memory(nbytes: float, what: str) -> None:
    """Raises OSError where less memory is available."""
    if (there := available_memory()) < nbytes:
        raise OSError(
            f"not enough memory: {what} takes about {size_text(int(nbytes))}, and {size_text(int(there))} are "
            "available; end other programs, raise the limit of the container or of `ulimit -v`, or take a larger one"
        )


def stored_bytes(paths: Collection[Path]) -> int:
    """Bytes on disk of files and of all files below folders, without holes; missing paths count 0."""
    below = (os.path.join(root, name) for path in paths for root, _, names in os.walk(path) for name in names)
    single = (path for path in paths if path.is_file())
    return sum(os.lstat(file).st_blocks * 512 for file in (*below, *single) if os.path.lexists(file))


def raise_open_files() -> None:
    """Raises the limit of open files as far as the system allows. Raises OSError where that is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if hard != resource.RLIM_INFINITY and hard < MIN_OPEN_FILES:
        raise OSError(f"this process may open {hard} files, and needs {MIN_OPEN_FILES}; raise the limit (ulimit -Hn)")


def _checked(path: os.PathLike | str) -> Path:
    """The absolute path. Raises ValueError and OSError on names that no file can have."""
    if not str(path):
        raise ValueError("the name of a folder or file is empty; name one")
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} has a NUL, which no name can have; name another one")
    try:
        found = Path(path).expanduser().absolute()
        found.resolve()  # a loop of links, an unknown user's ~, a name that is too long
        found.exists()
    except RuntimeError as error:
        raise OSError(f"{path} is no place for a file: {error}; name another one") from None
    return found


def _write_and_rename(folder: Path) -> None:
    """Writes, renames and removes a file; `partials.sweep` removes it if this process is killed meanwhile."""
    try:
        with write_errors(folder), claimed(folder / "probe", Path.touch) as probe:
            probe.write_bytes(b" " * 4096)
            probe.rename(partial_name(folder / "probe")).unlink()
    except PermissionError:
        raise PermissionError(
            f"nothing can be written into {folder}: permission denied; change its mode or owner, or name another"
        ) from None
    except FullDisk:
        raise
    except OSError as error:
        raise OSError(f"nothing can be written into {folder}: {error.strerror}; name another folder") from None
