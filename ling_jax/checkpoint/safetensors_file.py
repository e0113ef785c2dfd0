"""One safetensors file: dtypes and shapes at once, values on demand.

The `safetensors` library checks the header. The bytes are read here, because its numpy framework has no float8.
"""

import json
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
        self.path = path
        header_size, self._header = _read_header(path)
        self._header.pop("__metadata__", None)
        self._bytes = np.memmap(path, np.uint8, mode="r")
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
        """A view of the mapped file: the rows are read when they are used, and nothing else of the file."""
        begin, end = (self._first + offset for offset in self._header[name]["data_offsets"])
        array = np.asarray(self._bytes[begin:end]).view(DTYPES[self.dtype(name)]).reshape(self.shape(name))
        return array[rows] if array.ndim else array


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
