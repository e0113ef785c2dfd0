"""The manifest of a checkpoint: size and crc32c of each of its files, written last and compared before it is read.

Orbax stores no checksums of arrays, so a bit that flips on the disk would be another weight. The manifest is the file
`manifest.json` in the folder of a step. `write` makes it, and `verify` compares the folder with it.
"""

import contextlib
import functools
import hashlib
import os
import re
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from ling_jax import __version__
from ling_jax.distributed.peers import ALONE, Peers
from ling_jax.files import read_object
from ling_jax.messages import shown
from ling_jax.paths import as_path, files_below, is_remote, objects_below
from ling_jax.sums import DamagedFile, Sum, compare, read_sealed, sums_of, write_sealed

FILE_NAME = "manifest.json"
META_FILE = "meta/metadata"  # the record of the model and the run, as Orbax names it
FORMAT = 1
OF_PROCESS = re.compile(r"ocdbt\.process_([0-9]+)")


class DamagedCheckpoint(ValueError):
    """A checkpoint exists but cannot be read."""


def write(folder: Path | epath.Path, peers: Peers = ALONE) -> None:
    """Flushes all other files in the folder of a step to the disk and writes their manifest.

    The manifest repeats the checkpoint's record (META_FILE, of `orbax.meta_record`). Call it when all other files are
    written and before the folder gets its name; it replaces an old manifest. All `peers` call it: each sums and flushes
    the files that it wrote, and process 0 writes. If one of them fails, the others raise DamagedFile.
    """
    sums, problem = {}, None
    try:
        if not peers.index and not is_remote(folder):
            for left_over in folder.glob(f".{FILE_NAME}.*.partial"):  # of a process that was killed in this function
                left_over.unlink()
        sums = _own_sums(folder, peers)
    except Exception as error:  # of any kind: stores have their own, and the other processes wait
        problem = error
    found = peers.gather([sums, problem and str(problem)], "sums")
    if problem:
        raise problem
    for _, problem in found:
        if problem:
            raise DamagedFile(problem)
    if peers.index:
        return
    meta, files = read_object(folder / META_FILE), dict(sorted(item for part, _ in found for item in part.items()))
    write_sealed({"format": FORMAT, "code": code_version(), "meta": meta, "files": files}, folder / FILE_NAME)
    if not is_remote(folder):
        flush_folder(folder)


def write_of_save(folder: Path | epath.Path, peers: Peers) -> None:
    """`write` for a save that process 0 ends, while `help_write` waits for it in the others."""
    write(as_path(peers.first(str(folder), "saved folder")), peers)


def help_write(peers: Peers) -> None:
    """The other processes' part of `write_of_save`, in a thread: it sums the files that they wrote."""
    with contextlib.suppress(Exception):  # process 0 raises the error
        write(as_path(peers.first(None, "saved folder")), peers)


def _own_sums(folder: Path | epath.Path, peers: Peers) -> dict[str, Sum]:
    """{name: sum} of the files that this process wrote, or that a process beyond the present ones left."""

    def is_ours(path: PurePath) -> bool:
        return _writer(path) % peers.count == peers.index

    names = [name for name in files_below(folder) if name != FILE_NAME and is_ours(PurePath(name))]
    sums = sums_of(folder, names, flush=True)
    if not is_remote(folder):
        for path in folder.rglob("*"):
            if path.is_dir() and is_ours(path.relative_to(folder)):
                flush_folder(path)
    return sums


def _writer(path: PurePath) -> int:
    """The number of the process that wrote a file of a checkpoint; Orbax gives each process a folder."""
    return next((int(match[1]) for name in path.parts if (match := OF_PROCESS.fullmatch(name))), 0)


def verify(folder: Path | epath.Path, peers: Peers = ALONE) -> bool:
    """Compares every file with the manifest; each of several `peers` compares a share.

    Returns False where there is no manifest, as in checkpoints of earlier versions. Files that are not in the manifest
    are ignored. A process does not read unchanged files a second time. Raises DamagedCheckpoint that names the first
    file that is missing, cut or changed, and ValueError on a manifest of another format.
    """
    folder = as_path(folder)
    if not (folder / FILE_NAME).exists():
        return False
    try:
        _compare(folder, _stats(folder), peers)
    except (DamagedFile, OSError) as error:
        raise DamagedCheckpoint(str(error)) from None
    return True


def _stats(folder: Path | epath.Path) -> tuple:
    """Values that change when a file is touched: names, sizes, times and inodes; for objects their sums."""
    if is_remote(folder):
        return tuple(sorted(objects_below(folder).items()))
    stats = ((name, (folder / name).stat()) for name in files_below(folder))
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stats)


@functools.lru_cache(maxsize=16)
def _compare(folder: Path | epath.Path, stats: tuple, peers: Peers) -> None:
    """Compares this process's share of the files; cached until a file is touched."""
    files = read(folder).get("files")
    compare(folder, dict(peers.share(files.items())) if isinstance(files, dict) else files)


def read(folder: Path | epath.Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises as `verify`."""
    path = as_path(folder) / FILE_NAME
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
    """The version of this package with a digest of its sources."""
    root, digest = Path(__file__).parents[1], hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"ling_jax {__version__}, sources {digest.hexdigest()}"


def flush_folder(folder: Path) -> None:
    """Flushes the entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
