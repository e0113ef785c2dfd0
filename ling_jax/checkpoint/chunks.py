"""The chunks of leaves on disk: one layer and expert each, divided further until they are small."""

import itertools
import math
from collections.abc import Iterator

Shape = tuple[int, ...]
Index = tuple[int | slice, ...]  # of the leading dimensions of a leaf; the others are whole

CHUNK_BYTES = 64 * 2**20  # our choice


def stacked_dims(path: str) -> int:
    """The number of leading dimensions of a leaf that stack layers and experts."""
    names = path.split("/")
    return (2 if "segments" in names else int("mtp" in names)) + int("experts" in names)


def chunk_shape(path: str, shape: Shape, itemsize: int) -> Shape:
    """The shape of the chunks in which `orbax.save` on one device stores a leaf.

    A chunk has one layer and expert; its largest dimension is divided until it has at most `CHUNK_BYTES` bytes.
    """
    stacked = stacked_dims(path)
    if stacked >= len(shape):
        return shape
    chunk = [1] * stacked + list(shape[stacked:])
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        largest = max(range(len(chunk)), key=chunk.__getitem__)
        chunk[largest] = next(size for size in range(chunk[largest] - 1, 0, -1) if shape[largest] % size == 0)
    return tuple(chunk)


def chunk_numbers(shape: Shape, chunk: Shape, index: Index) -> Iterator[tuple[int, ...]]:
    """The grid positions of the chunks that overlap a part of a leaf."""
    whole = (*index, *[slice(None)] * (len(shape) - len(index)))
    ranges = []
    for size, step, at in zip(shape, chunk, whole, strict=True):
        begin, end = (at, at + 1) if isinstance(at, int) else at.indices(size)[:2]
        ranges.append(range(begin // step, -(-end // step)))
    return itertools.product(*ranges)
