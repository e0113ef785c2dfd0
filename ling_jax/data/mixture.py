"""Batches out of packed sources: which rows come at a step is a pure function of (seed, step)."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from ling_jax.data.joined import JoinedRows
from ling_jax.data.packing import PackedRows, empty_row

Batch = dict[str, np.ndarray]


def mixture(rows: Sequence[PackedRows | JoinedRows], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """An endless dataset that draws rows of each source in proportion to its weight (to 1 % of the smallest).

    Each source goes through all its rows before any comes again, in another order every epoch. Raises ValueError on
    weights that are not positive, and on sources that do not fit together.
    """
    _check_mixture(rows, weights)
    # Seeds are hashed, since grain counts epochs up from them: run 1's first epoch would be run 0's second.
    seeds = np.random.SeedSequence(seed).generate_state(len(rows)).tolist()
    endless = [
        grain.MapDataset.source(source).shuffle(seed=source_seed).repeat()
        for source, source_seed in zip(rows, seeds, strict=True)
    ]
    # grain truncates weights to integers such that the smallest is 100; rounded before, they stay what they are.
    shares = [round(100 * weight / min(weights)) for weight in weights]
    return grain.MapDataset.mix(endless, weights=shares)


def global_batch(dataset: grain.MapDataset, step: int, batch_size: int, host: int = 0, num_hosts: int = 1) -> Batch:
    """A host's part of the batch of a step, [batch_size / num_hosts, T] each field.

    The whole batch is rows step * batch_size, … of the dataset; host h takes its h-th contiguous part, so the parts
    of all hosts in order are the batch of a single one.
    """
    size = _rows_per_host(batch_size, host, num_hosts)
    first = step * batch_size + host * size
    return _stack([dataset[i] for i in range(first, first + size)])


def batches(
    dataset: grain.MapDataset, *, batch_size: int, start_step: int, stop_step: int, host: int = 0, num_hosts: int = 1
) -> Iterator[tuple[int, Batch]]:
    """(step, `global_batch` of it) for start_step <= step < stop_step, read ahead in the background.

    Starts anywhere at once: no earlier row is read.
    """
    _rows_per_host(batch_size, host, num_hosts)
    steps = grain.MapDataset.range(start_step, stop_step)
    read = steps.map(lambda step: (step, global_batch(dataset, step, batch_size, host, num_hosts)))
    # One thread: rows are memory-mapped, and more of them would only compete with the training loop for the GIL.
    return iter(read.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))


def held_out_batches(rows: PackedRows, batch_size: int, host: int = 0, num_hosts: int = 1) -> Iterator[Batch]:
    """A host's part of batches of all rows once, in order, [batch_size / num_hosts, T] each field.

    The last batch is filled up with rows of padding; hosts share a batch as in `global_batch`.
    """
    size = _rows_per_host(batch_size, host, num_hosts)
    padding = empty_row(rows.sequence_length, rows.documents.eos_id)
    for first in range(0, len(rows), batch_size):
        mine = range(first + host * size, first + (host + 1) * size)
        yield _stack([rows[i] if i < len(rows) else padding for i in mine])


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


def _rows_per_host(batch_size: int, host: int, num_hosts: int) -> int:
    if batch_size < 1 or num_hosts < 1 or batch_size % num_hosts:
        raise ValueError(f"batch_size {batch_size} does not divide into equal parts for num_hosts {num_hosts}")
    if not 0 <= host < num_hosts:
        raise ValueError(f"host is {host}; it must be in 0..{num_hosts - 1} (num_hosts {num_hosts})")
    return batch_size // num_hosts


def _stack(rows: list[dict[str, np.ndarray]]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
