"""Folders that several processes fill, and compare with their sums, together. A process alone does everything."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ling_jax.distributed.peers import ALONE, Peers
from ling_jax.files import new_folder
from ling_jax.partials import partial_name, write_errors
from ling_jax.paths import files_below
from ling_jax.sums import DamagedFile, checks, compare, read_sealed, sums_of, write_sealed

SUMS = ".sums.json"  # of a folder's files


@contextlib.contextmanager
def new_shared_folder(path: Path, peers: Peers = ALONE) -> Iterator[Path]:
    """Yields a folder to fill; it gets its name when the block of every process has ended well (`files.new_folder`).

    Process 0 makes it, names it, and removes it if the block fails. If a process is killed all end, and the next
    program that makes this folder removes the half that is left.
    """
    path = path.resolve()
    if peers.index:
        partial = path.with_name(peers.first(None, "name of a folder"))
        _check_seen(partial, peers)
        with write_errors(path):
            yield partial
        peers.wait("folder filled")
    else:
        with new_folder(path) as partial:
            peers.first(partial.name, "name of a folder")
            _check_seen(partial, peers)
            yield partial
            peers.wait("folder filled")
    peers.wait("folder named")


def check_shared(folder: Path, peers: Peers) -> None:
    """Raises ValueError in all processes where one of them has another folder at this path than process 0."""
    if peers.count == 1:
        return
    mark = folder / peers.first(partial_name(folder / "shared").name, "mark")
    if not peers.index:
        mark.touch()
    peers.wait("mark set")
    try:
        _check_seen(mark, peers)
    finally:
        if not peers.index:
            mark.unlink()


def _check_seen(path: Path, peers: Peers) -> None:
    for index, seen in enumerate(peers.gather(path.exists(), "seen")):
        if not seen:
            what = f"{path.parent} of host {index} lacks {path.name}, which host 0 made there"
            raise ValueError(f"{what}; name a workdir that all hosts share")


def write_sums(folder: Path, own: Iterable[str] = (), peers: Peers = ALONE) -> None:
    """Writes the size and crc32c of all files below a folder into `SUMS`; call it when they are written.

    Each process reads the files that it wrote, `own`; process 0 also reads the files that no process names.
    """
    found = peers.gather(sums_of(folder, own, flush=True), "sums of a folder")
    if peers.index:
        return
    sums = {name: value for part in found for name, value in part.items()}
    others = [name for name in files_below(folder) if name not in sums and name != SUMS]
    files = dict(sorted((sums | sums_of(folder, others, flush=True)).items()))
    write_sealed({"files": files}, folder / SUMS)


def check_sums(folder: Path, peers: Peers = ALONE) -> None:
    """Raises DamagedFile in all processes where a file below the folder has changed since `write_sums`.

    Each process compares a share of the files. A folder of an earlier version has no sums, which is printed to stderr.
    """
    if not checks.verify:
        return
    damage = None
    try:
        _compare_share(folder, peers)
    except ValueError as error:
        damage = error
    peers.raise_in_all(damage, DamagedFile, "damage of a folder")


def _compare_share(folder: Path, peers: Peers) -> None:
    path = folder / SUMS
    if path.exists():
        sums = read_sealed(path, "the sums of a folder's files").get("files")
        compare(folder, dict(peers.share(sums.items())) if isinstance(sums, dict) else sums)
    elif not peers.index:
        print(f"{path} is missing, as in earlier versions: the folder is not verified", file=sys.stderr, flush=True)
