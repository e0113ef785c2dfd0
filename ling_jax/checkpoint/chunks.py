"""How leaves are cut on disk: chunks of layers and experts, halved until they are small."""

import itertools
import math
from collections.abc import Iterator

Shape = tuple[int, ...]
Index = tuple[int | slice, ...]  # of the leading dimensions of a leaf; the others are whole

CHUNK_BYTES = 64 * 2**20  # our choice


def stacked_dims(path: str) -> int:
    """How many leading dimensions of a leaf count layers and experts."""
    names = path.split("/")
    return (2 if "segments" in names else int("mtp" in names)) + int("experts" in names)


def chunk_shape(path: str, shape: Shape, itemsize: int) -> Shape:
    """The chunks that Orbax cuts a leaf into by `orbax.save` on one device.

    One layer and expert each; the largest dimension is then divided until a chunk has at most `CHUNK_BYTES`.
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
    """Grid positions of the chunks that a part of a leaf touches."""
    whole = (*index, *[slice(None)] * (len(shape) - len(index)))
    ranges = []
    for size, step, at in zip(shape, chunk, whole, strict=True):
        begin, end = (at, at + 1) if isinstance(at, int) else at.indices(size)[:2]
        ranges.append(range(begin // step, -(-end // step)))
    return itertools.product(*ranges)
