"""The tensors of a Hugging Face folder by their official names, read in ranges of rows; FP8 weights are dequantised."""

import collections
import threading
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from ling_jax.checkpoint.index import locate
from ling_jax.checkpoint.names import IGNORED
from ling_jax.checkpoint.nonfinite import count_nonfinite, report_nonfinite
from ling_jax.checkpoint.quantised import (
    WeightFormat,
    dequantise,
    is_activation_scale,
    pair_scales,
    refuse_other_formats,
    weight_format,
)
from ling_jax.checkpoint.safetensors_file import DTYPES
from ling_jax.messages import one_line


class Tensors:
    """The tensors of a folder: dtypes and shapes are read at once, values on demand. `hf` is its config.json.

    Names are canonical, and scales are part of their weights. Raises FileNotFoundError, PermissionError or ValueError
    that name the file, the key of config.json or the tensor.
    """

    def __init__(self, folder: Path, hf: dict[str, Any]):
        self.folder = folder
        # `absent`: tensors of files that only the index names. `remarks`: warnings about the folder.
        self._place, self.absent, self.remarks = locate(folder)
        self._nonfinite: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        read = (name for name in self._place if not IGNORED.search(name))
        stored = {name: (self.stored_dtype(name), self.shape(name)) for name in read}
        try:
            self._format = weight_format(hf)
            refuse_other_formats({name: dtype for name, (dtype, _) in stored.items()})
            self._scales = pair_scales(stored, self._format)
        except ValueError as error:
            raise ValueError(f"{folder}: {one_line(str(error), 1000)}") from None
        if self._format and not self._scales:
            self.remarks.append("config.json has a quantization_config, but no tensor is FP8: all are read as stored")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._place.clear()

    def names(self) -> set[str]:
        """The names of all tensors but scales."""
        scales = set(self._scales.values())
        return {name for name in self._place if name not in scales and not is_activation_scale(name)}

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._place[name]
        return file.shape(stored)

    def stored_dtype(self, name: str) -> str:
        """The stored dtype in safetensors' notation, such as "BF16"."""
        file, stored = self._place[name]
        return file.dtype(stored)

    def format_of(self, name: str) -> WeightFormat | None:
        """The FP8 format of a weight; None for one that is not quantised."""
        return self._format if name in self._scales else None

    def dtype(self, name: str, dequantised: DTypeLike) -> np.dtype:
        """The stored dtype of a weight; `dequantised` for FP8."""
        return np.dtype(dequantised) if name in self._scales else DTYPES[self.stored_dtype(name)]

    def read(self, name: str, rows: slice, dtype: DTypeLike) -> np.ndarray:
        """Rows of a tensor in `dtype`; it counts nonfinite values for `report_nonfinite`. Raises OSError."""
        value = self._stored(name, rows)
        if name in self._scales:
            scale = self._stored(self._scales[name], slice(None))
            value = dequantise(value, scale, self._format, rows.start or 0, dtype)
        elif value.dtype != dtype:
            with np.errstate(over="ignore", invalid="ignore"):
                value = value.astype(dtype)
        count = count_nonfinite(value)
        with self._lock:  # several threads may read
            self._nonfinite[name] += count
        return value

    def report_nonfinite(self) -> None:
        """Warns once about nonfinite values that were read since the last call."""
        report_nonfinite(self.folder, self._nonfinite)
        self._nonfinite.clear()

    def _stored(self, name: str, rows: slice) -> np.ndarray:
        file, stored = self._place[name]
        return file.read(stored, rows)
