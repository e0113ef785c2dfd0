"""Sums of files: size and crc32c of each, recorded when it was written and compared before it is relied on."""

import concurrent.futures
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import crc32c

from ling_jax.files import read_object, replacing
from ling_jax.messages import shown

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


def sums_of(folder: Path, names: Iterable[str], *, flush: bool = False) -> dict[str, Sum]:
    """{name: sum} of files of a folder. `flush`: what the system still holds of them goes to the disk.

    Raises DamagedFile where one cannot be read.
    """
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _sum(folder / name, flush=flush), names), strict=True))


def compare(folder: Path, sums: Mapping[str, Sum], *, may_be_longer: bool = False) -> None:
    """Raises DamagedFile, which names the first file that is missing, cut or another, or says that `sums` are none.

    `may_be_longer`: lines may have been added since, and only the part that was summed is compared.
    """
    if not isinstance(sums, dict) or not all(map(_is_sum, sums.keys(), sums.values())):
        raise DamagedFile(f"{folder}: the sums of its files are {shown(sums)}; expected the size and crc32c of each")
    for name, wanted in sums.items():  # sizes first: they cost nothing
        _check_size(folder / name, wanted["bytes"], may_be_longer=may_be_longer)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _sum(folder / name, sums[name]["bytes"])["crc32c"], sums)
        for (name, wanted), crc in zip(sums.items(), found, strict=True):
            if crc != wanted["crc32c"]:
                told = f"its crc32c is {crc} and was {wanted['crc32c']}"
                raise DamagedFile(f"{folder / name} has changed since it was written: {told}")


def _is_sum(name: str, value: Any) -> bool:
    """Whether an entry that a file holds is that of a file below a folder."""
    path = PurePosixPath(name)
    below = "\0" not in name and not path.is_absolute() and ".." not in path.parts
    return below and isinstance(value, dict) and isinstance(value.get("bytes"), int) and "crc32c" in value


def sealed(content: dict[str, Any]) -> bytes:
    """JSON with its own sum as last field. There is but one way to write it, so that any other byte is noticed."""
    body = json.dumps(content, indent=1).encode()
    return json.dumps(content | {"crc32c": f"{crc32c.crc32c(body):08x}"}, indent=1).encode()


def write_sealed(content: dict[str, Any], path: Path) -> None:
    """Writes `sealed` JSON, which is on the disk when this returns."""
    with replacing(path) as file:
        file.write(sealed(content))
        file.flush()
        if "://" not in str(path):
            os.fsync(file.fileno())


def write_folder_sums(folder: Path) -> None:
    """Writes the sums of all files below a folder into it, as `FOLDER_SUMS`; to be called when all else is written."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = sums_of(folder, [name for name in names if name != FOLDER_SUMS], flush=True)
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


def _check_size(path: Path, wanted: int, *, may_be_longer: bool) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from None
    if found < wanted or (found > wanted and not may_be_longer):
        raise DamagedFile(f"{path} has {found} bytes; {wanted} were written")


def _sum(path: Path, limit: int | None = None, *, flush: bool = False) -> Sum:
    """Of a file, or of so many bytes from its start."""
    block, size, crc = memoryview(bytearray(BLOCK_BYTES)), 0, 0
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block if limit is None else block[: limit - size]):
                size, crc = size + count, crc32c.crc32c(block[:count], crc)
            if flush:
                os.fsync(file.fileno())
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from None
    return {"bytes": size, "crc32c": f"{crc:08x}"}
