"""Log-probabilities of given tokens, in padded batches whose sizes are powers of two."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.model.loss import shifted_targets, token_logps
from ling_jax.model.transformer import hidden_states, make_sequence
from ling_jax.rollout.generate import LEAST_BUCKET, bucket


@functools.partial(jax.jit, static_argnames="config")
def next_token_logps(params, tokens_BT, segment_ids_BT, config: ModelConfig):
    """[B, T] log p(token t + 1 | its document up to t), float32; 0 where none follows in the document."""
    config = dataclasses.replace(config, mtp_depth=0)
    sequence = make_sequence(tokens_BT, config, None, segment_ids_BT)
    hidden_BTD, _, _ = hidden_states(params, tokens_BT, sequence, config)
    targets_BT = shifted_targets(tokens_BT, sequence.docs, 1)
    return token_logps(hidden_BTD, params["head"], targets_BT, config.loss_chunk)


def score_rows(
    params, config: ModelConfig, rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Yields batches of (i, log p(rows[i][t + 1] | rows[i][: t + 1]) for all t, float32 [length - 1]) in nats.

    Rows of 2 tokens to the model's context, none of which sees another; the longest come first, so that what does not
    fit the memory fails at once. One program is compiled for each power of two of length and of rows in a batch.
    Raises FloatingPointError where the model gives something that is not finite.
    """
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(min(bucket(len(row), LEAST_BUCKET), config.max_length), []).append(i)
    for length in sorted(by_length, reverse=True):
        numbers = by_length[length]
        for first in range(0, len(numbers), batch_size):
            part = numbers[first : first + batch_size]
            yield list(zip(part, _score_batch(params, config, [rows[i] for i in part], length), strict=True))


def _score_batch(params, config: ModelConfig, rows, length: int) -> list[np.ndarray]:
    shape = (bucket(len(rows), 1), length)
    tokens_BT, segment_ids_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        tokens_BT[i, : len(row)], segment_ids_BT[i, : len(row)] = row, 1
    logps_BT = np.asarray(next_token_logps(params, tokens_BT, segment_ids_BT, config))
    logps = [logps_BT[i, : len(row) - 1] for i, row in enumerate(rows)]
    check_finite(logps)
    return logps


def check_finite(logps) -> None:
    if not all(np.isfinite(row).all() for row in logps):
        raise FloatingPointError("the model's log-probabilities are not finite; its weights or its dtype are at fault")
