"""A comparison of two models on disk, number by number: the source and the target of a port."""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ling_jax.checkpoint.chunks import stacked_dims
from ling_jax.checkpoint.names import tensor_mappings
from ling_jax.checkpoint.parts import Reader
from ling_jax.checkpoint.transfer import Band, bands, batches
from ling_jax.distributed.peers import ALONE, Peers
from ling_jax.model.transformer import model_spec
from ling_jax.spec import named_leaves

CHUNK = 2**22  # numbers that are compared at a time; our choice
MAX_NAMED = 4  # tensors in a message
FLOAT8 = "float8"
# E4M3 has three bits of mantissa. Its error is at most 1/16 of a number (a bit more if it is read as bfloat16), or half
# of its smallest number, 2^-10 of the scale, which is 1/448 of the largest number of a block.
FLOAT8_ERROR, FLOAT8_SMALLEST = 1 / 15, 2.0**-18


@dataclasses.dataclass
class Difference:
    """The difference of a tensor in the target from the source."""

    size: int = 0  # numbers that were compared
    count: int = 0  # of them that differ
    largest: float = 0.0  # absolute difference; infinite where one side is NaN and the other is not

    def add(self, other: "Difference") -> None:
        """Adds the difference of other parts of the tensor."""
        self.size += other.size
        self.count += other.count
        self.largest = max(self.largest, other.largest)

    def __str__(self) -> str:
        return f"{self.count} of {self.size} numbers, by at most {self.largest:.3g}"


@dataclasses.dataclass
class Verification:
    """The result of a comparison of all tensors, by their official names."""

    tensors: dict[str, Difference]
    roundings: dict[str, set[str]]  # dtype -> tensors of the target that are rounded to it
    float8_squares: np.ndarray  # [2], sums of squares of float8's errors and of the numbers

    @property
    def different(self) -> dict[str, Difference]:
        return {name: found for name, found in self.tensors.items() if found.count}

    def check(self, target: Path) -> None:
        """Raises ValueError that names the first tensors that differ."""
        if found := self.different:
            named = "; ".join(f"{name}: {difference}" for name, difference in list(found.items())[:MAX_NAMED])
            more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            raise ValueError(
                f"{target}: {len(found)} of {len(self.tensors)} tensors are not those of the source: {named}{more}; "
                "port again"
            )

    def __str__(self) -> str:
        """The number of tensors, and of those that are equal only after rounding."""
        rounded = [f"{len(names)} of them rounded to {dtype}" for dtype, names in sorted(self.roundings.items())]
        if FLOAT8 in self.roundings:
            error, size = self.float8_squares
            rounded[-1] += f" (root mean square error {(error / size) ** 0.5 if size else 0:.2%})"
        return ", ".join([f"{len(self.tensors)} tensors", *rounded])


def compare_models(
    reader: Reader,
    written: Reader,
    *,
    threads: int = 1,
    progress: Callable[[int], None] = lambda nbytes: None,
    peers: Peers = ALONE,
) -> Verification:
    """Compares every number of `written` with the reader's number as `written` stores it.

    These are the same bits where the target's dtype holds all numbers of the source's, else the source's number rounded
    once, and for FP8 the result of our quantiser, within the error of the format. Each thread reads batches of bands
    from both sides and holds one band at a time; `progress` gets the bytes of every batch. All `peers` call it: each
    compares a share, and all return the common result. Raises ValueError where the two have different parameters.
    """
    check_same_shapes(reader, written)
    mappings = tensor_mappings(model_spec(written.config), written.config)
    names = {(mapping.leaf, mapping.index): mapping.name for mapping in mappings}
    found, lock = Verification({name: Difference() for name in names.values()}, {}, np.zeros(2)), threading.Lock()

    def compare(batch: list[Band]) -> int:
        for band in batch:
            name = names[band.leaf, band.index[: stacked_dims(band.leaf)]]
            _compare_band(reader, written, band, name, found, lock)
        return sum(band.nbytes for band in batch)

    pool = ThreadPoolExecutor(threads)
    try:
        for nbytes in pool.map(compare, peers.share(batches(bands(reader, written.config, written.dtypes)))):
            progress(nbytes)
    finally:
        pool.shutdown(cancel_futures=True)
    return _of_all(found, peers)


def _of_all(own: Verification, peers: Peers) -> Verification:
    """The common result of all processes."""
    tensors = {name: dataclasses.astuple(found) for name, found in own.tensors.items()}
    roundings = {dtype: sorted(names) for dtype, names in own.roundings.items()}
    parts = peers.gather([tensors, roundings, own.float8_squares.tolist()], "differences")
    merged = Verification({name: Difference() for name in tensors}, {}, np.zeros(2))
    for of_tensors, of_dtypes, squares in parts:
        for name, values in of_tensors.items():
            merged.tensors[name].add(Difference(*values))
        for dtype, names in of_dtypes.items():
            merged.roundings.setdefault(dtype, set()).update(names)
        merged.float8_squares += squares
    return merged


def check_same_shapes(reader: Reader, written: Reader) -> None:
    """Raises ValueError where the parameters of the two models have different names or shapes."""
    one, other = (named_leaves(model_spec(r.config)) for r in (reader, written))
    for leaf in sorted(one.keys() | other.keys()):
        if leaf not in one or leaf not in other or one[leaf].shape != other[leaf].shape:
            there, here = (str(leaves[leaf].shape) if leaf in leaves else "missing" for leaves in (one, other))
            raise ValueError(
                f"the target is of another model than the source: {leaf} is {there} in the source and {here} in the "
                "target"
            )


def _compare_band(
    reader: Reader, written: Reader, band: Band, name: str, found: Verification, lock: threading.Lock
) -> None:
    source, value = reader.read(band.leaf, band.index), written.read(band.leaf, band.index)
    is_float8 = written.is_quantised(band.leaf, band.index)
    try:
        stored = written.as_stored(source, band.leaf, band.index)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    wanted = stored.astype(value.dtype, copy=False)
    difference = _difference(value, wanted)
    squares = np.zeros(2)
    if is_float8:
        error, size = np.abs(value.astype(np.float32) - source), np.abs(source.astype(np.float32))
        outside = int((error > size * FLOAT8_ERROR + size.max() * FLOAT8_SMALLEST).sum())
        difference.count = max(difference.count, outside)
        squares = np.array([np.square(x, dtype=np.float64).sum() for x in (error, size)])
    with lock:
        found.tensors[name].add(difference)
        if is_float8 or stored is not source:
            found.roundings.setdefault(FLOAT8 if is_float8 else value.dtype.name, set()).add(name)
        found.float8_squares += squares


def _difference(value: np.ndarray, wanted: np.ndarray) -> Difference:
    bits, found = f"u{value.dtype.itemsize}", Difference(value.size)
    value, wanted = (np.ascontiguousarray(x).reshape(-1) for x in (value, wanted))
    for first in range(0, value.size, CHUNK):
        one, other = value[first : first + CHUNK], wanted[first : first + CHUNK]
        differ = one.view(bits) != other.view(bits)
        if differ.any():
            with np.errstate(invalid="ignore"):
                error = np.abs(one[differ].astype(np.float64) - other[differ].astype(np.float64))
            found.count += len(error)
            found.largest = max(found.largest, float(np.max(np.nan_to_num(error, nan=np.inf))))
    return found
