"""The transfer of a model from a reader to a writer, in small bands of its tensors."""

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ling_jax.checkpoint.chunks import Index, chunk_shape
from ling_jax.checkpoint.names import in_file_order, row_dim, tensor_mappings
from ling_jax.checkpoint.parts import Part, Reader, Writer
from ling_jax.checkpoint.quantised import BLOCK, QUANTISED_NAMES
from ling_jax.config import ModelConfig
from ling_jax.model.transformer import model_spec
from ling_jax.spec import named_leaves

BATCH_BYTES = 64 * 2**20  # that a thread holds, unless a band is larger; our choice: as fast as 128 MB in less memory
TURN_BYTES = 16 * 2**20  # that processes which write one database take in turn; our choice


class Band(NamedTuple):
    """Whole chunks of one leaf that are contiguous rows of one official tensor."""

    leaf: str
    index: Index
    nbytes: int  # in the wider of the two dtypes


def transfer(
    reader: Reader, writer: Writer, *, threads: int = 1, progress: Callable[[int], None] = lambda nbytes: None
) -> None:
    """Writes this process's share of the reader's model, without the parts that are written, and closes the writer.

    Each thread reads, converts and writes batches of its own. `progress` gets the bytes of every written batch.
    """
    own = own_share(bands(reader, writer.config, writer.dtypes), writer)
    left = (band for band in own if not writer.is_written(band.leaf, band.index))
    with contextlib.closing(moved(reader, writer, batches(left), threads)) as every_batch:
        for nbytes in every_batch:
            progress(nbytes)
    reader.report_nonfinite()
    writer.close()


def own_share(every: Iterable[Band], writer: Writer) -> Iterator[Band]:
    """The bands that this process writes: whole files where a file has one writer, else `TURN_BYTES` in turn.

    The share does not depend on the parts that are written already, which processes may see differently.
    """
    peers = writer.peers
    for number, batch in enumerate(batches(every, TURN_BYTES)):
        for band in batch:
            file = writer.file_number(band.leaf, band.index)
            if (number if file is None else file) % peers.count == peers.index:
                yield band


def moved(reader: Reader, writer: Writer, every: Iterable[list[Band]], threads: int) -> Generator[int]:
    """Moves batches, and yields the bytes of each written one, in order. Its threads end when it is closed."""

    def move(batch: list[Band]) -> int:
        values = ((band, reader.read(band.leaf, band.index)) for band in batch)
        writer.write(Part(b.leaf, b.index, value.astype(writer.dtypes[b.leaf], copy=False)) for b, value in values)
        return sum(band.nbytes for band in batch)

    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(move, every)
    finally:
        pool.shutdown(cancel_futures=True)


def bands(reader: Reader, config: ModelConfig, dtypes: Mapping[str, np.dtype]) -> Iterator[Band]:
    """Bands that cover the model once, layer by layer; `config` and `dtypes` are the writer's."""
    shapes = {path: leaf.shape for path, leaf in named_leaves(model_spec(config)).items()}
    for mapping in in_file_order(tensor_mappings(model_spec(config), config)):
        itemsize = dtypes[mapping.leaf].itemsize
        widest = max(itemsize, reader.dtypes[mapping.leaf].itemsize)
        dim = row_dim(mapping)
        step = chunk_shape(mapping.leaf, shapes[mapping.leaf], itemsize)[len(mapping.index) + dim]
        if QUANTISED_NAMES.search(mapping.name):  # whole blocks
            rows = step * (mapping.official[0] // mapping.shape[dim])
            step *= math.lcm(rows, BLOCK) // rows
        for first in range(0, mapping.shape[dim], step):
            last = min(first + step, mapping.shape[dim])
            index = (*mapping.index, *[slice(None)] * dim, slice(first, last))
            yield Band(mapping.leaf, index, math.prod(mapping.shape) // mapping.shape[dim] * (last - first) * widest)


def batches(every: Iterable[Band], limit: int | None = None) -> Iterator[list[Band]]:
    """Consecutive bands of at most `limit` bytes together (None: `BATCH_BYTES`), or one larger band."""
    limit = limit or BATCH_BYTES
    batch: list[Band] = []
    for band in every:
        if batch and sum(b.nbytes for b in batch) + band.nbytes > limit:
            yield batch
            batch = []
        batch.append(band)
    if batch:
        yield batch
