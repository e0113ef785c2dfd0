"""The manifest of a checkpoint: size and crc32c of each of its files, written last and compared before it is read.

Orbax keeps no sums of the arrays' bytes: a bit that a disk flips is another weight. The manifest is the file
`manifest.json` in the folder of a step; `write` makes it, `verify` compares the folder with it.
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
from ling_jax.files import read_object
from ling_jax.messages import shown
from ling_jax.parallel.peers import ALONE, Peers
from ling_jax.paths import as_path, files_below, is_remote, objects_below
from ling_jax.sums import DamagedFile, Sum, compare, read_sealed, sums_of, write_sealed

FILE_NAME = "manifest.json"
META_FILE = "meta/metadata"  # the record of the model and the run, as Orbax names it
FORMAT = 1
OF_PROCESS = re.compile(r"ocdbt\.process_([0-9]+)")


class DamagedCheckpoint(ValueError):
    """A checkpoint that is there and cannot be read."""


def write(folder: Path | epath.Path, peers: Peers = ALONE) -> None:
    """Writes the manifest of a step's folder: all its files but the manifest itself, flushed to the disk before.

    It repeats the checkpoint's record (META_FILE, of `orbax.meta_record`). To be called when everything else is written
    and before the folder takes its name; a manifest that is there is replaced. All `peers` call it: each sums and
    flushes the files that it wrote, and the first one writes. Where one of them cannot, the others raise DamagedFile.
    """
    sums, problem = {}, None
    try:
        if not peers.index and not is_remote(folder):
            for left_over in folder.glob(f".{FILE_NAME}.*.partial"):  # of a process killed while it wrote one
                left_over.unlink()
        sums = _own_sums(folder, peers)
    except Exception as error:  # a store's have kinds of their own, and the others wait
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
    """In a thread of the other processes: sums of what they wrote of the next save that process 0 ends."""
    with contextlib.suppress(Exception):  # which process 0 raises
        write(as_path(peers.first(None, "saved folder")), peers)


def _own_sums(folder: Path | epath.Path, peers: Peers) -> dict[str, Sum]:
    """Of the files that this process wrote, or that are left of one with a higher number."""

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
    """The number of the process that wrote a file of a checkpoint: Orbax gives each a folder."""
    return next((int(match[1]) for name in path.parts if (match := OF_PROCESS.fullmatch(name))), 0)


def verify(folder: Path | epath.Path, peers: Peers = ALONE) -> bool:
    """Compares every file with the manifest, of several processes each its share.

    False where there is no manifest, as in checkpoints of earlier versions.

    Raises DamagedCheckpoint, which names the first file that is missing, cut or another, and ValueError on a manifest
    of another format. Files that the manifest does not name are left alone. What this process has compared, and no one
    has touched since, is not read again.
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
    """What tells whether files were touched: a name, size, time of change and inode each; of objects their sums."""
    if is_remote(folder):
        return tuple(sorted(objects_below(folder).items()))
    stats = ((name, (folder / name).stat()) for name in files_below(folder))
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stats)


@functools.lru_cache(maxsize=16)
def _compare(folder: Path | epath.Path, stats: tuple, peers: Peers) -> None:
    """Reads this process's share of a checkpoint's files; in a process once, unless a file was touched since."""
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
