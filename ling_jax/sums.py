"""Sums of files: size and crc32c of each, recorded when it was written and compared before it is relied on."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import crc32c
from etils import epath

from ling_jax.files import read_object, replacing
from ling_jax.messages import shown
from ling_jax.paths import (
    cache_folder,
    download,
    file_size,
    files_below,
    is_remote,
    objects_below,
    objects_in,
    read_range,
)

BLOCK_BYTES = 8 * 2**20  # our choice
THREADS = min(8, os.cpu_count() or 1)  # crc32c lets other threads run
FOLDER_SUMS = ".sums.json"

Sum = dict[str, Any]  # {"bytes": size, "crc32c": eight hexadecimal digits}


@dataclasses.dataclass
class Checks:
    """How this process reads what it wrote earlier; programs set it once, from --no_verify and --strict."""

    verify: bool = True  # compare files with their sums
    strict: bool = False  # damage is an error, although the run could go on without what is damaged


checks = Checks()


class DamagedFile(ValueError):
    """A file that is not as it was written."""


def sums_of(folder: epath.PathLike, names: Iterable[str], *, flush: bool = False) -> dict[str, Sum]:
    """{name: sum} of files of a folder. `flush`: what the system still holds of them goes to the disk.

    Those of a store are as the store has them: nothing is read. Raises DamagedFile where one cannot be read.
    """
    names = list(names)
    if is_remote(folder):
        known = _stored_sums(folder, names)
        if missing := [name for name in names if name not in known]:
            raise DamagedFile(f"{folder / missing[0]} cannot be read: it is not there")
        return {name: known[name] for name in names}
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _sum(folder / name, flush=flush), names), strict=True))


def compare(folder: epath.PathLike, sums: Mapping[str, Sum], *, may_be_longer: bool = False) -> None:
    """Raises DamagedFile, which names the first file that is missing, cut or another, or says that `sums` are none.

    `may_be_longer`: lines may have been added since, and only the part that was summed is compared. Objects of a store
    are compared by the sums that the store has, which it keeps and checks itself.
    """
    if not isinstance(sums, dict) or not all(map(_is_sum, sums.keys(), sums.values())):
        raise DamagedFile(f"{folder}: the sums of its files are {shown(sums)}; expected the size and crc32c of each")
    known = _stored_sums(folder, sums) if is_remote(folder) else {}
    for name, wanted in sums.items():  # sizes first: they cost nothing
        found = known[name]["bytes"] if name in known else _size(folder / name)
        if found < wanted["bytes"] or (found > wanted["bytes"] and not may_be_longer):
            raise DamagedFile(f"{folder / name} has {found} bytes; {wanted['bytes']} were written")

    def found_sum(name: str) -> Sum:
        same_size = name in known and known[name]["bytes"] == sums[name]["bytes"]
        return known[name] if same_size else _sum(folder / name, sums[name]["bytes"])

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for (name, wanted), found in zip(sums.items(), pool.map(found_sum, sums), strict=True):
            if found["crc32c"] != wanted["crc32c"]:
                told = f"its crc32c is {found['crc32c']} and was {wanted['crc32c']}"
                raise DamagedFile(f"{folder / name} has changed since it was written: {told}")


def _is_sum(name: str, value: Any) -> bool:
    """Whether an entry that a file holds is that of a file below a folder."""
    path = PurePosixPath(name)
    below = "\0" not in name and not path.is_absolute() and ".." not in path.parts
    return below and isinstance(value, dict) and isinstance(value.get("bytes"), int) and "crc32c" in value


def local_copy(folder: epath.PathLike) -> Path:
    """A local folder itself; of one in a store a copy on this machine, which is made once of the same content.

    Copies are in the user's cache folder and may be removed when no program reads them. One that was damaged is made
    again.
    """
    if not is_remote(folder):
        return Path(folder)
    stored = {name: {"bytes": size, "crc32c": crc} for name, (size, crc) in objects_below(folder).items()}
    digest = hashlib.blake2b(json.dumps([os.fspath(folder), stored], sort_keys=True).encode(), digest_size=16)
    copy = cache_folder() / "copies" / digest.hexdigest()
    try:
        if copy.is_dir():
            if checks.verify:
                compare(copy, stored)
            return copy
    except DamagedFile as error:
        print(f"WARNING: {error}; it is copied again from {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(copy)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".") as partial:
        whole = Path(partial, "copy")
        for name in stored:
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            download(epath.Path(folder) / name, whole / name)
        compare(whole, stored)
        try:
            whole.rename(copy)
        except OSError:  # another process was first
            if not copy.is_dir():
                raise
    return copy


def sealed(content: dict[str, Any]) -> bytes:
    """JSON with its own sum as last field. There is but one way to write it, so that any other byte is noticed."""
    body = json.dumps(content, indent=1).encode()
    return json.dumps(content | {"crc32c": f"{crc32c.crc32c(body):08x}"}, indent=1).encode()


def write_sealed(content: dict[str, Any], path: Path) -> None:
    """Writes `sealed` JSON, which is on the disk when this returns."""
    with replacing(path) as file:
        file.write(sealed(content))
        file.flush()
        if not is_remote(path):
            os.fsync(file.fileno())


def write_folder_sums(folder: Path) -> None:
    """Writes the sums of all files below a folder into it, as `FOLDER_SUMS`; to be called when all else is written."""
    files = sums_of(folder, [name for name in files_below(folder) if name != FOLDER_SUMS], flush=True)
    write_sealed({"files": files}, folder / FOLDER_SUMS)


def check_folder(folder: Path) -> None:
    """Raises DamagedFile where a file below is not as it was at `write_folder_sums`.

    Folders of earlier versions have no sums, which a line on stderr says.
    """
    if not checks.verify:
        return
    path = folder / FOLDER_SUMS
    if not path.exists():
        print(f"{path} is missing, as in earlier versions: the folder is not verified", file=sys.stderr, flush=True)
        return
    compare(folder, read_sealed(path, "the sums of a folder's files").get("files"))


def read_sealed(path: Path, expected: str) -> dict[str, Any]:
    """The object that `sealed` wrote. Raises OSError, ValueError on what is no object, and DamagedFile."""
    content = read_object(path, expected)
    if content.pop("crc32c", None) is None or sealed(content) != path.read_bytes():
        raise DamagedFile(f"{path} has changed since it was written: its own crc32c is another")
    return content


def _stored_sums(folder: epath.PathLike, names: Iterable[str]) -> dict[str, Sum]:
    """Of those objects of a store that are there."""
    parents = sorted({str(PurePosixPath(name).parent) for name in names})
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        listed = pool.map(lambda parent: objects_in(folder / parent), parents)
        found = {
            str(PurePosixPath(p, name)): about
            for p, here in zip(parents, listed, strict=True)
            for name, about in here.items()
        }
    return {name: {"bytes": size, "crc32c": crc} for name, (size, crc) in found.items()}


def _size(path: epath.PathLike) -> int:
    try:
        return file_size(path)
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror or 'it is not there'}") from None


def _sum(path: epath.PathLike, limit: int | None = None, *, flush: bool = False) -> Sum:
    """Of a file, or of so many bytes from its start."""
    size, crc = 0, 0
    try:
        for block in _blocks_of_object(path, limit) if is_remote(path) else _blocks(path, limit, flush=flush):
            size, crc = size + len(block), crc32c.crc32c(block, crc)
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror or error}") from None
    return {"bytes": size, "crc32c": f"{crc:08x}"}


def _blocks(path: Path, limit: int | None, *, flush: bool) -> Iterator[memoryview]:
    """Pieces of a local file, each valid until the next is asked for."""
    block, left = memoryview(bytearray(BLOCK_BYTES)), BLOCK_BYTES if limit is None else limit
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block[:left]):
            yield block[:count]
            left -= 0 if limit is None else count
        if flush:
            os.fsync(file.fileno())


def _blocks_of_object(path: epath.PathLike, limit: int | None) -> Iterator[bytes]:
    size = file_size(path) if limit is None else limit
    for begin in range(0, size, BLOCK_BYTES):
        yield read_range(path, begin, min(begin + BLOCK_BYTES, size))
