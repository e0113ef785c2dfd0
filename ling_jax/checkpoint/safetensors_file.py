"""One safetensors file: dtypes and shapes at once, values on demand.

The `safetensors` library checks the header. The bytes are read here, because its numpy framework has no float8.
"""

import errno
import json
import math
import os
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from ling_jax.files import LFS_ADVICE, LFS_POINTER
from ling_jax.paths import file_size, is_remote, read_range

HEADER_BYTES = 2**20  # that the first request to a store reads; our choice: most headers are shorter
MAX_HEADER_BYTES = 2**28  # more than the format allows

FP8 = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **FP8,
}


class SafetensorsFile:
    """An open safetensors file.

    Raises FileNotFoundError, PermissionError, or ValueError where it is no whole safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._version = None if is_remote(path) else _version(os.stat(path))
        header_size, self._header = _read_header(path)
        self._header.pop("__metadata__", None)
        self._first = 8 + header_size

    def __contains__(self, name: str) -> bool:
        return name in self._header

    def names(self) -> list[str]:
        return list(self._header)

    def dtype(self, name: str) -> str:
        """The dtype of a tensor in safetensors' notation, such as "BF16"; those in `DTYPES` can be read."""
        return self._header[name]["dtype"]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._header[name]["shape"])

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of a tensor, by one read or one request to a store.

        The file is not mapped, because an error of the disk would then end the process. Raises OSError that names the
        file where it cannot be read, and ValueError where it has changed since it was opened.
        """
        shape, dtype = self.shape(name), DTYPES[self.dtype(name)]
        first, last, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
        shape = (max(0, last - first), *shape[1:]) if shape else ()
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        begin = self._first + self._header[name]["data_offsets"][0] + first * row_bytes
        size = math.prod(shape) * dtype.itemsize
        data = self._requested(begin, size) if is_remote(self.path) else self._from_disk(begin, size)
        return data.view(dtype).reshape(shape)

    def _from_disk(self, begin: int, size: int) -> np.ndarray:
        data = np.empty(size, np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                self._check_version(_version(os.fstat(file.fileno())))
                _fill(data, file.fileno(), begin)
                self._check_version(_version(os.fstat(file.fileno())))
        except OSError as error:
            raise OSError(f"{self.path} cannot be read: {error.strerror}") from error
        return data

    def _requested(self, begin: int, size: int) -> np.ndarray:
        data = np.frombuffer(read_range(self.path, begin, begin + size), np.uint8)
        if len(data) != size:
            raise ValueError(f"{self.path} has changed while it was read; start again when nothing writes it")
        return data

    def _check_version(self, found: tuple[int, ...]) -> None:
        if found != self._version:
            raise ValueError(f"{self.path} has changed while it was read; start again when nothing writes it")


def _version(found: os.stat_result) -> tuple[int, ...]:
    """Values that differ when a file was replaced or changed."""
    return found.st_size, found.st_mtime_ns, found.st_ino


def _fill(data: np.ndarray, descriptor: int, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise OSError(errno.EIO, "it ends too early")
        view, offset = view[count:], offset + count


def _read_header(path: Path) -> tuple[int, dict]:
    if not is_remote(path):
        return _read_local_header(path, path)
    size = file_size(path)
    first = read_range(path, 0, min(size, HEADER_BYTES))
    end = min(size, 8 + int.from_bytes(first[:8], "little"))
    if end > MAX_HEADER_BYTES:
        raise ValueError(f"{path} ({size} bytes) is not a whole safetensors file: its header is {end} bytes")
    with tempfile.NamedTemporaryFile() as copy:  # the header, followed by a hole that takes no space
        copy.write(first[:end] + read_range(path, len(first), end))
        copy.truncate(size)
        copy.flush()
        return _read_local_header(Path(copy.name), path)


def _read_local_header(path: Path, named: Path) -> tuple[int, dict]:
    """(size of the header, header) of a local file; `named` is its name in errors."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            with safetensors.safe_open(path, framework="numpy"):  # raises where the header does not fit the file
                return size, json.loads(file.read(size))
    except PermissionError:
        raise PermissionError(f"{named} cannot be read: permission denied; change its mode or owner") from None
    except safetensors.SafetensorError as error:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(f"{named} is {LFS_ADVICE}") from None
        size = path.stat().st_size
        reason = " ".join(str(error).split())[:300]  # it quotes the header
        raise ValueError(
            f"{named} ({size} bytes) is not a whole safetensors file: {reason}; copy or download it again"
        ) from None
