"""The manifest of a checkpoint: size and crc32c of each of its files, written last and compared before it is read.

Orbax keeps no sums of the arrays' bytes: a bit that a disk flips is another weight. The manifest is the file
`manifest.json` in the folder of a step; `write` makes it, `verify` compares the folder with it.
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from ling_jax import __version__
from ling_jax.files import read_object
from ling_jax.messages import shown
from ling_jax.sums import DamagedFile, compare, read_sealed, sums_of, write_sealed

FILE_NAME = "manifest.json"
META_FILE = "meta/metadata"  # the record of the model and the run, as Orbax names it
FORMAT = 1


class DamagedCheckpoint(ValueError):
    """A checkpoint that is there and cannot be read."""


def write(folder: Path) -> None:
    """Writes the manifest of a step's local folder: all its files but the manifest itself, flushed to the disk before.

    It repeats the checkpoint's record (META_FILE, of `orbax.meta_record`). To be called when everything else is written
    and before the folder takes its name; a manifest that is there is replaced.
    """
    meta = read_object(folder / META_FILE)
    for left_over in folder.glob(f".{FILE_NAME}.*.partial"):  # of a process that was killed while it wrote one
        left_over.unlink()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = sums_of(folder, [name for name in names if name != FILE_NAME], flush=True)
    write_sealed({"format": FORMAT, "code": code_version(), "meta": meta, "files": files}, folder / FILE_NAME)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush_folder(path)


def verify(folder: Path) -> bool:
    """Compares every file with the manifest; False where there is none, as in checkpoints of earlier versions.

    Raises DamagedCheckpoint, which names the first file that is missing, cut or another, and ValueError on a manifest
    of another format. Files that the manifest does not name are left alone. What this process has compared, and no one
    has touched since, is not read again.
    """
    folder = Path(folder)
    if not (folder / FILE_NAME).exists():
        return False
    try:
        _compare(folder, _stats(folder))
    except (DamagedFile, OSError) as error:
        raise DamagedCheckpoint(str(error)) from None
    return True


def _stats(folder: Path) -> tuple:
    """What tells whether files were touched: a name, size, time of change and inode each."""
    files = sorted(path for path in folder.resolve().rglob("*") if path.is_file())
    return tuple(
        (str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for path in files for s in [path.stat()]
    )


@functools.lru_cache(maxsize=16)
def _compare(folder: Path, stats: tuple) -> None:
    """Reads all files of a checkpoint; in a process once, unless one of them was touched since."""
    compare(folder, read(folder).get("files"))


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises as `verify`."""
    path = Path(folder) / FILE_NAME
    try:
        content = read_sealed(path, "the manifest of a checkpoint")
    except DamagedFile as error:
        raise DamagedCheckpoint(str(error)) from None
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} has changed since it was written: {error}") from None
    if (found := content.get("format")) != FORMAT:
        raise ValueError(f"{path} is of format {shown(found)}; this version of ling_jax reads format {FORMAT}")
    return content


@functools.cache
def code_version() -> str:
    """Of this package: its version and a digest of its sources, which tells changed ones apart."""
    root, digest = Path(__file__).parents[1], hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"ling_jax {__version__}, sources {digest.hexdigest()}"


def flush_folder(folder: Path) -> None:
    """The names in a folder go to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
