"""Checksums of files: size and crc32c, recorded when a file is written and compared before it is used."""

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
    is_remote,
    objects_below,
    objects_in,
    read_range,
)

BLOCK_BYTES = 8 * 2**20  # our choice
THREADS = min(8, os.cpu_count() or 1)  # crc32c releases the GIL

Sum = dict[str, Any]  # {"bytes": size, "crc32c": eight hexadecimal digits}


@dataclasses.dataclass
class Checks:
    """How this process checks files that it reads; programs set it once, from --no_verify and --strict."""

    verify: bool = True  # compare files with their sums
    strict: bool = False  # damage is an error, also where the program could continue without the damaged file


checks = Checks()


class DamagedFile(ValueError):
    """A file that differs from the one that was written."""


def sums_of(folder: epath.PathLike, names: Iterable[str], *, flush: bool = False) -> dict[str, Sum]:
    """{name: sum} of files in a folder; with `flush` their pages are flushed to the disk first.

    For objects of a store it returns the store's own sums and reads nothing. Raises DamagedFile where a file cannot be
    read.
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
    """Raises DamagedFile that names the first file that is missing, cut or changed, or where `sums` are no sums.

    With `may_be_longer` a file may have grown, and only its summed part is compared. Objects of a store are compared by
    the sums that the store keeps and checks itself.
    """
    if not isinstance(sums, dict) or not all(map(_is_sum, sums.keys(), sums.values())):
        raise DamagedFile(f"{folder}: the sums of its files are {shown(sums)}; expected the size and crc32c of each")
    known = _stored_sums(folder, sums) if is_remote(folder) else {}
    for name, wanted in sums.items():  # sizes first, because they need no reading
        found = known[name]["bytes"] if name in known else _size(folder / name)
        if found < wanted["bytes"] or (found > wanted["bytes"] and not may_be_longer):
            raise DamagedFile(f"{folder / name} has {found} bytes; {wanted['bytes']} were written")

    def found_sum(name: str) -> Sum:
        same_size = name in known and known[name]["bytes"] == sums[name]["bytes"]
        return known[name] if same_size else _sum(folder / name, sums[name]["bytes"])

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for (name, wanted), found in zip(sums.items(), pool.map(found_sum, sums), strict=True):
            if found["crc32c"] != wanted["crc32c"]:
                change = f"its crc32c is {found['crc32c']} and was {wanted['crc32c']}"
                raise DamagedFile(f"{folder / name} has changed since it was written: {change}")


def _is_sum(name: str, value: Any) -> bool:
    """Whether an entry of a file of sums is valid: a name below the folder, and a sum."""
    path = PurePosixPath(name)
    below = "\0" not in name and not path.is_absolute() and ".." not in path.parts
    return below and isinstance(value, dict) and isinstance(value.get("bytes"), int) and "crc32c" in value


def local_copy(folder: epath.PathLike) -> Path:
    """A local folder itself, or a local copy of a folder in a store; the same content is copied once.

    Copies are in the user's cache folder, and may be removed when no program reads them. A damaged copy is made again.
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
    """JSON with its own crc32c as last field, in one canonical form, so that any changed byte is noticed."""
    body = json.dumps(content, indent=1).encode()
    return json.dumps(content | {"crc32c": f"{crc32c.crc32c(body):08x}"}, indent=1).encode()


def write_sealed(content: dict[str, Any], path: Path) -> None:
    """Writes `sealed` JSON and flushes it to the disk."""
    with replacing(path) as file:
        file.write(sealed(content))
        file.flush()
        if not is_remote(path):
            os.fsync(file.fileno())


def read_sealed(path: Path, expected: str, most: float | None = None) -> dict[str, Any]:
    """The object of a `sealed` file of at most `most` bytes. Raises OSError, ValueError where it is no object, and
    DamagedFile."""
    content = read_object(path, expected, most)
    if content.pop("crc32c", None) is None or sealed(content) != path.read_bytes():
        raise DamagedFile(f"{path} has changed since it was written: its own crc32c is another")
    return content


def _stored_sums(folder: epath.PathLike, names: Iterable[str]) -> dict[str, Sum]:
    """{name: sum} of the objects among `names` that exist in a folder of a store."""
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
    """The sum of a file, or of its first `limit` bytes."""
    size, crc = 0, 0
    try:
        for block in _blocks_of_object(path, limit) if is_remote(path) else _blocks(path, limit, flush=flush):
            size, crc = size + len(block), crc32c.crc32c(block, crc)
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror or error}") from None
    return {"bytes": size, "crc32c": f"{crc:08x}"}


def _blocks(path: Path, limit: int | None, *, flush: bool) -> Iterator[memoryview]:
    """Blocks of a local file; each is valid until the next one is read."""
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
