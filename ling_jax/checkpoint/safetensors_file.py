"""One safetensors file: dtypes and shapes at once, values on demand.

The `safetensors` library checks the header. The bytes are read here, because its numpy framework has no float8.
"""

import errno
import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from ling_jax.files import LFS_ADVICE, LFS_POINTER

FP8 = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **FP8,
}


class SafetensorsFile:
    """Raises FileNotFoundError, PermissionError, or ValueError where the file is no whole safetensors file."""

    def __init__(self, path: Path):
        self.path, self._version = path, _version(os.stat(path))
        header_size, self._header = _read_header(path)
        self._header.pop("__metadata__", None)
        self._first = 8 + header_size

    def __contains__(self, name: str) -> bool:
        return name in self._header

    def names(self) -> list[str]:
        return list(self._header)

    def dtype(self, name: str) -> str:
        """As safetensors names it, such as "BF16"; those in `DTYPES` can be read."""
        return self._header[name]["dtype"]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._header[name]["shape"])

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of a tensor, read from the disk now: a mapped file would end the process where the disk fails.

        Raises OSError naming the file where it cannot be read, and ValueError where it has changed since it was opened.
        """
        shape, dtype = self.shape(name), DTYPES[self.dtype(name)]
        first, last, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
        shape = (max(0, last - first), *shape[1:]) if shape else ()
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        data = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
        begin = self._first + self._header[name]["data_offsets"][0] + first * row_bytes
        try:
            with self.path.open("rb", buffering=0) as file:
                self._check_version(file.fileno())
                _fill(data, file.fileno(), begin)
                self._check_version(file.fileno())
        except OSError as error:
            raise OSError(f"{self.path} cannot be read: {error.strerror}") from error
        return data.view(dtype).reshape(shape)

    def _check_version(self, descriptor: int) -> None:
        if _version(os.fstat(descriptor)) != self._version:
            raise ValueError(f"{self.path} has changed while it was read; start again when nothing writes it")


def _version(found: os.stat_result) -> tuple[int, ...]:
    """What is another where a file is another."""
    return found.st_size, found.st_mtime_ns, found.st_ino


def _fill(data: np.ndarray, descriptor: int, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise OSError(errno.EIO, "it ends too early")
        view, offset = view[count:], offset + count


def _read_header(path: Path) -> tuple[int, dict]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            with safetensors.safe_open(path, framework="numpy"):  # raises where header and file do not fit
                return size, json.loads(file.read(size))
    except PermissionError:
        raise PermissionError(f"{path} cannot be read: permission denied; change its mode or owner") from None
    except safetensors.SafetensorError as error:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(f"{path} is {LFS_ADVICE}") from None
        size = path.stat().st_size
        reason = " ".join(str(error).split())[:300]  # it quotes the header
        raise ValueError(
            f"{path} ({size} bytes) is not a whole safetensors file: {reason}; copy or download it again"
        ) from None
