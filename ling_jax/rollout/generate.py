"""Batches of prompts to batches of tokens: one prefill, then compiled pieces of decoding."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.model import Cache, init_cache, read
from ling_jax.model.loss import head_logits
from ling_jax.rollout.sampler import sample

PIECE = 16  # tokens that are decoded between two looks from the host: our choice
LEAST_BUCKET = 16


class Sampled(NamedTuple):
    """What one prompt got so far."""

    tokens: list[int]  # without the prompt; the last may be an end token
    logps: list[float]  # of each under the model
    done: bool


class _State(NamedTuple):
    cache: Cache
    logits: jax.Array  # [B, W] of the next token
    ended: jax.Array  # [B] rows that drew an end token
    drawn: jax.Array  # [B] tokens drawn so far


class Generator:
    """Generates from a model. Programs are compiled per bucket: sizes are rounded up to powers of two."""

    def __init__(self, params, config: ModelConfig, end_ids: Collection[int]):
        self.params, self.config, self.end_ids = params, config, end_ids
        end = jnp.asarray(sorted(end_ids), jnp.int32)
        # Bound here and not at module level, so that the counts of programs are this generator's.
        self._prefill = jax.jit(self._prefill_program, static_argnums=3)
        self._decode = jax.jit(lambda *args: _decode(*args, end, config), donate_argnums=1)

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
        batch, length = bucket(rows, 1), bucket(max(map(len, prompts)), LEAST_BUCKET)
        tokens, live = np.zeros((batch, length), np.int32), np.zeros((batch, length), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)], live[row, : len(prompt)] = prompt, 1
        seeds = [*(range(rows) if seeds is None else seeds), *[0] * (batch - rows)]
        settings = (jnp.asarray(seeds, jnp.uint32), jnp.full(batch, temperature), jnp.full(batch, top_p))
        state = self._prefill(self.params, tokens, live, max(room, length))
        while not all(result.done for result in results):
            done = np.array([*(result.done for result in results), *[True] * (batch - rows)])
            state, drawn, logps = self._decode(self.params, state, done, *settings)
            drawn, logps = np.asarray(drawn), np.asarray(logps)
            for row, result in enumerate(results):
                if not result.done:
                    results[row] = self._with(result, row, drawn[row], logps[row], max_new_tokens, stopped)
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
            if (worst := max(prompt)) >= self.config.vocab_size or min(prompt) < 0:
                raise ValueError(f"prompt {row} has token {worst}; the vocabulary has {self.config.vocab_size}")
        longest = max(map(len, prompts))
        if longest + max_new_tokens > self.config.max_length:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones pass the model's context of "
                f"{self.config.max_length}"
            )
        # Decoding goes in whole pieces: what it draws past the end of a row is thrown away.
        return min(bucket(longest + max_new_tokens + PIECE, LEAST_BUCKET), self.config.max_length)

    def _prefill_program(self, params, tokens, live, room: int) -> _State:
        cache = init_cache(self.config, len(tokens), room)
        hidden_BTD, _, cache = read(params, tokens, self.config, cache, segment_ids=live)
        last_B1D = jnp.take_along_axis(hidden_BTD, jnp.maximum(cache.length - 1, 0)[:, None, None], axis=1)
        logits_BW = head_logits(params["head"], last_B1D)[:, 0]
        zero = jnp.zeros(len(tokens), jnp.int32)
        return _State(cache=cache, logits=logits_BW, ended=cache.length == 0, drawn=zero)


def _decode(params, state: _State, done, seeds, temperature, top_p, end, config: ModelConfig):
    """(state after a piece, tokens [B, PIECE], logps [B, PIECE]); the caches of rows that are done stay as they are."""
    keys_B = jax.vmap(jax.random.key)(seeds)

    def step(state: _State, _):
        keys = jax.vmap(jax.random.fold_in)(keys_B, state.drawn)
        token_B, logp_B = sample(state.logits, keys, temperature, top_p)
        live_B1 = ~(state.ended | done)[:, None]
        hidden_B1D, _, cache = read(
            params, token_B[:, None], config, state.cache, segment_ids=live_B1.astype(jnp.int32)
        )
        state = _State(
            cache=cache,
            logits=head_logits(params["head"], hidden_B1D)[:, 0],
            ended=state.ended | jnp.isin(token_B, end),
            drawn=state.drawn + 1,
        )
        return state, (token_B, logp_B)

    state, (tokens, logps) = jax.lax.scan(step, state, None, length=PIECE)
    return state, tokens.T, logps.T


def bucket(size: int, least: int) -> int:
    """The next power of two, at least `least`."""
    return max(least, 1 << (size - 1).bit_length())
