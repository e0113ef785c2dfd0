"""Batches of packed sources: the rows of a step are a pure function of (seed, step)."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from ling_jax.data.joined import JoinedRows
from ling_jax.data.packing import PackedRows, empty_row

Batch = dict[str, np.ndarray]


def mixture(rows: Sequence[PackedRows | JoinedRows], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """An endless dataset that draws rows of the sources in proportion to their weights (to 1 % of the smallest).

    Each source yields all its rows once per epoch, in another order every epoch. Raises ValueError on weights that are
    not positive, and on sources with different tokenizers or sequence lengths.
    """
    _check_mixture(rows, weights)
    # Seeds are hashed, because grain adds the epoch to them: run 1's first epoch would be run 0's second.
    seeds = np.random.SeedSequence(seed).generate_state(len(rows)).tolist()
    endless = [
        grain.MapDataset.source(source).shuffle(seed=source_seed).repeat()
        for source, source_seed in zip(rows, seeds, strict=True)
    ]
    # grain scales weights until the smallest is 100 and truncates them, so they are rounded to such integers first.
    shares = [round(100 * weight / min(weights)) for weight in weights]
    return grain.MapDataset.mix(endless, weights=shares)


def global_batch(dataset: grain.MapDataset, step: int, batch_size: int, part: Sequence[int] | None = None) -> Batch:
    """The batch of a step: the rows from step * batch_size on, [batch_size, T] for each field.

    `part` selects rows by their index in the batch, such as those of a host's devices; indices from `batch_size` on are
    rows of padding. The parts of all hosts together are the batch of a single host.
    """
    part, first = _part(batch_size, part), step * batch_size
    padding = empty_row(len(dataset[first]["tokens"]), 0) if max(part) >= batch_size else {}
    return _stack([dataset[first + i] if i < batch_size else padding for i in part])


def batches(
    dataset: grain.MapDataset,
    *,
    batch_size: int,
    start_step: int,
    stop_step: int,
    part: Sequence[int] | None = None,
) -> Iterator[tuple[int, Batch]]:
    """(step, its `global_batch`) for start_step <= step < stop_step, read ahead in the background.

    It reads no row of an earlier step.
    """
    part = _part(batch_size, part)
    steps = grain.MapDataset.range(start_step, stop_step)
    read = steps.map(lambda step: (step, global_batch(dataset, step, batch_size, part)))
    # One thread, because rows are memory-mapped and more threads would compete with the training loop for the GIL.
    return iter(read.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))


def held_out_batches(rows: PackedRows, batch_size: int, part: Sequence[int] | None = None) -> Iterator[Batch]:
    """Batches of all rows in order, [batch_size, T] for each field; `part` selects rows as in `global_batch`.

    The last batch is filled with rows of padding.
    """
    part = _part(batch_size, part)
    padding = empty_row(rows.sequence_length, rows.documents.eos_id)
    for first in range(0, len(rows), batch_size):
        left = min(batch_size, len(rows) - first)
        yield _stack([rows[first + i] if i < left else padding for i in part])


def _check_mixture(rows: Sequence[PackedRows | JoinedRows], weights: Sequence[float]) -> None:
    if not rows or len(rows) != len(weights):
        raise ValueError(f"a mixture needs a weight for each source; got {len(rows)} sources, {len(weights)} weights")
    for i, weight in enumerate(weights):
        if not (np.isfinite(weight) and weight > 0):
            raise ValueError(f"weight {i} is {weight}; weights must be positive and finite")
    first = rows[0]
    for source in rows:
        if not len(source):
            raise ValueError(f"{source.documents.folder} holds no rows; leave it out of the mixture")
        if _kind_of_rows(source) != _kind_of_rows(first):
            raise ValueError(
                f"{first.documents.folder} has {_kind_of_rows(first)}, {source.documents.folder} has "
                f"{_kind_of_rows(source)}; sources of a mixture share a tokenizer and a sequence length"
            )


def _kind_of_rows(rows: PackedRows | JoinedRows) -> dict:
    documents = rows.documents
    kind = {name: getattr(documents, name) for name in ("vocab_size", "eos_id", "tokenizer")}
    return kind | {"sequence_length": rows.sequence_length}


def _part(batch_size: int, part: Sequence[int] | None) -> Sequence[int]:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    part = range(batch_size) if part is None else part
    if not len(part) or min(part) < 0:
        raise ValueError(f"part is {list(part)}; expected places in the batch, 0 to {batch_size - 1} or behind it")
    return part


def _stack(rows: list[dict[str, np.ndarray]]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
