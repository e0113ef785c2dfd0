"""Batches of prompts to batches of tokens: one prefill, then compiled pieces of decoding."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.model import init_cache
from ling_jax.rollout.decode import Context, Rows, decode, read_on

PIECE = 16  # tokens that are decoded between two looks from the host: our choice
LEAST_BUCKET = 16


class Sampled(NamedTuple):
    """What one prompt got so far."""

    tokens: list[int]  # without the prompt; the last may be an end token
    logps: list[float]  # of each under the model
    done: bool


class Generator:
    """Generates from a model. Programs are compiled per bucket: sizes are rounded up to powers of two."""

    def __init__(self, params, config: ModelConfig, end_ids: Collection[int]):
        self.params = jax.device_put(params)  # once, not with every piece
        self.config, self.end_ids = config, end_ids
        end = jnp.asarray(sorted(end_ids), jnp.int32)
        # Bound here and not at module level, so that the counts of programs are this generator's.
        self._prefill = jax.jit(self._prefill_program, static_argnums=3)
        self._decode = jax.jit(lambda *args: decode(*args, end, config, PIECE), donate_argnums=1)

    def programs(self) -> int:
        """How many were compiled so far."""
        return self._prefill._cache_size() + self._decode._cache_size()

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        stopped: Callable[[int, list[int]], bool] = lambda row, tokens: False,
    ) -> Iterator[list[Sampled]]:
        """Yields what all prompts have so far, after every piece of decoding.

        A row draws with its own seed (default: its number), whatever else is in the batch. It ends at an end token,
        after `max_new_tokens`, or where `stopped(row, tokens)` says so.

        Raises ValueError before any work on an empty prompt, on tokens out of the vocabulary, and where prompt and
        new tokens do not fit the model's context.
        """
        rows, results = len(prompts), [Sampled([], [], False) for _ in prompts]
        room = self.room_for(prompts, max_new_tokens)
        batch, longest = bucket(rows, 1), max(map(len, prompts))
        length = min(bucket(longest, LEAST_BUCKET), self.config.max_length)
        tokens, live = np.zeros((batch, length), np.int32), np.zeros((batch, length), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)], live[row, : len(prompt)] = prompt, 1
        seeds = [*(range(rows) if seeds is None else seeds), *[0] * (batch - rows)]
        going = Rows(
            live=np.arange(batch) < rows,
            seed=np.asarray(seeds, np.uint32),
            drawn=np.zeros(batch, np.int32),
            limit=np.full(batch, max_new_tokens, np.int32),
            temperature=np.full(batch, temperature, np.float32),
            top_p=np.full(batch, top_p, np.float32),
        )
        context = self._prefill(self.params, tokens, live, max(room, length))
        while going.live.any():
            context, *new = self._decode(self.params, context, going)
            drawn, logps, counts = map(np.asarray, new)
            for row in np.flatnonzero(going.live):
                piece = slice(counts[row])
                results[row] = self._with(
                    results[row], row, drawn[row, piece], logps[row, piece], max_new_tokens, stopped
                )
                going.live[row], going.drawn[row] = not results[row].done, len(results[row].tokens)
            yield list(results)

    def _with(self, result: Sampled, row: int, tokens, logps, most: int, stopped) -> Sampled:
        """The result with a piece of new tokens, up to where it ends."""
        for token, logp in zip(tokens.tolist(), logps.tolist(), strict=True):
            result = Sampled([*result.tokens, token], [*result.logps, logp], False)
            if token in self.end_ids or len(result.tokens) == most or stopped(row, result.tokens):
                return result._replace(done=True)
        return result

    def room_for(self, prompts, max_new_tokens: int) -> int:
        """Slots of a cache for these prompts and what they may get; raises as `__call__`."""
        if not prompts or max_new_tokens < 1:
            raise ValueError(
                f"{len(prompts)} prompts and max_new_tokens {max_new_tokens}; at least 1 of both is needed"
            )
        for row, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError(f"prompt {row} has no tokens; give at least one")
            worst = min(prompt) if min(prompt) < 0 else max(prompt)
            if not 0 <= worst < self.config.vocab_size:
                raise ValueError(f"prompt {row} has token {worst}; the vocabulary has {self.config.vocab_size}")
        longest = max(map(len, prompts))
        if longest + max_new_tokens > self.config.max_length:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones pass the model's context of "
                f"{self.config.max_length}"
            )
        return min(bucket(longest + max_new_tokens, LEAST_BUCKET), self.config.max_length)

    def _prefill_program(self, params, tokens, live, room: int) -> Context:
        return read_on(params, tokens, live, init_cache(self.config, len(tokens), room), self.config)


def bucket(size: int, least: int) -> int:
    """The next power of two, at least `least`."""
    return max(least, 1 << (size - 1).bit_length())
