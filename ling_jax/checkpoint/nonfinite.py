"""Warnings about weights that are NaN or infinite, which are loaded all the same."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from etils import epath

from ling_jax.messages import warn

CHUNK = 2**17  # elements that are checked at a time: the temporaries fit the cache
NAMED = 4


def count_nonfinite(array: np.ndarray) -> int:
    """The number of NaN or infinite elements; temporaries are small."""
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    flat = array.reshape(-1)
    finite = sum(np.count_nonzero(_is_finite(flat[i : i + CHUNK])) for i in range(0, flat.size, CHUNK))
    return flat.size - finite


def _is_finite(array: np.ndarray) -> np.ndarray:
    if array.dtype == ml_dtypes.bfloat16:  # an exponent of ones; ml_dtypes takes ten times as long
        return array.view(np.uint16) & 0x7F80 != 0x7F80
    return np.isfinite(array)


def report_nonfinite(where: epath.PathLike, counts: Mapping[str, int]) -> None:
    """Warns once about tensors with NaN or infinity, {name: count}; `where` is their file or folder."""
    found = {name: count for name, count in counts.items() if count}
    if not found:
        return
    named = ", ".join(f"{name} ({count})" for name, count in list(found.items())[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    warn(f"{where}: {sum(found.values())} weights are NaN or infinite, in {named}{more}; they are loaded as they are")
