"""Log-probabilities of given tokens, in padded batches whose sizes are powers of two."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from ling_jax.config import ModelConfig
from ling_jax.model.loss import shifted_targets, token_logps
from ling_jax.model.transformer import hidden_states, make_token_info
from ling_jax.spec import Params

LEAST_BUCKET = 16  # tokens; our choice


def bucket(size: int, least: int) -> int:
    """The next power of two, at least `least`."""
    return max(least, 1 << (size - 1).bit_length())


@functools.partial(jax.jit, static_argnames="config")
def next_token_logps(params: Params, tokens_BT: jax.Array, segment_ids_BT: jax.Array, config: ModelConfig) -> jax.Array:
    """log p(token t + 1 | its document up to t) in nats, [B, T] float32; 0 at the last token of a document."""
    config = dataclasses.replace(config, mtp_depth=0)
    info = make_token_info(tokens_BT, config, None, segment_ids_BT)
    hidden_BTD, _, _ = hidden_states(params, tokens_BT, info, config)
    targets_BT = shifted_targets(tokens_BT, info.docs, 1)
    return token_logps(hidden_BTD, params["head"], targets_BT, config.loss_chunk)


def score_rows(
    params: Params, config: ModelConfig, rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Yields batches of (i, log p(rows[i][t + 1] | rows[i][: t + 1]) for all t, float32 [length - 1]) in nats.

    Rows have 2 tokens to the model's context and are independent. The longest come first, so that a batch that does not
    fit in memory fails at once. Each power of two of length and batch size compiles one program. Raises
    FloatingPointError if a log-probability is not finite.
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


def check_finite(logps: Iterable[ArrayLike]) -> None:
    """Raises FloatingPointError unless all values are finite."""
    if not all(np.isfinite(row).all() for row in logps):
        raise FloatingPointError("the model's log-probabilities are not finite; its weights or its dtype are at fault")
