"""Log-probs of given tokens, with the bits that the engine records when it draws them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.engine.engine import EXACT_TILE, Engine
from ling_jax.engine.memory import memory_for
from ling_jax.engine.request import Request, request_error


def score(
    params: Any, sequences: Sequence[Sequence[int]], config: ModelConfig, *, row_tile: int | None = EXACT_TILE
) -> list[np.ndarray]:
    """Log-probs [length - 1] float32 of each sequence's tokens from the second on, each after those before it.

    With the default `row_tile` they equal bit for bit what an engine of that tile recorded on this machine with the
    same weights, however it cut, mixed and paused the requests. Raises ValueError on a sequence that does not fit the
    model.
    """
    if not len(sequences):
        return []
    slots = min(len(sequences), EXACT_TILE)
    longest = max(map(len, sequences))
    memory = memory_for(config, slots=slots, max_tokens=min(longest, config.max_length))
    engine = Engine(config, slots=slots, memory_bytes=memory, row_tile=row_tile, prefill_tokens=slots * EXACT_TILE)
    engine.load(params, version=0)
    return score_with(engine, sequences)


def score_with(engine: Engine, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """`score` by an engine that is idle, with the weights that it has. Raises ValueError as `score`."""
    numbers = {f"score {number}": number for number in range(len(sequences))}
    requests = [Request(id, sequences[i], 0, seed=0, prompt_logprobs=True) for id, i in numbers.items()]
    for request in requests:
        if error := request_error(request, engine.config.vocab_size, engine.plan.max_tokens):
            raise ValueError(f"sequence {numbers[request.id]}: {error}")
    for request in requests:
        engine.submit(request)
    found = [np.zeros(0, np.float32)] * len(sequences)
    while engine.busy:
        for event in engine.step():
            found[numbers[event.id]] = np.asarray(event.prompt_logps, np.float32)
            engine.release(event.id)
    return found
