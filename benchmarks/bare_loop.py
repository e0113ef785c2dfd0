"""Decoding without an engine: one jitted loop over `forward_with_cache`, what an engine's speed is compared with.

All rows begin and end together, each has keys and latents of full length in one array, and nothing can join or leave.
The weights lie as in the engine.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax import model
from ling_jax.config import ModelConfig
from ling_jax.engine.draw import Sampling, draw
from ling_jax.engine.schedule import PIECE
from ling_jax.model.cache import Cache
from ling_jax.model.loss import head_logits


@functools.partial(jax.jit, static_argnums=4, donate_argnums=1)
def draw_piece(
    params, cache: Cache, token_B: jax.Array, sampling: Sampling, config: ModelConfig
) -> tuple[Cache, jax.Array, jax.Array]:
    """(cache, tokens [8, B], their log-probs [8, B]): the eight tokens of every row that follow `token_B`."""

    def one(carry, number):
        cache, token_B = carry
        hidden_B1D, _, cache = model.forward_with_cache(params, token_B[:, None], config, cache)
        logits_BW = head_logits(params["head"], hidden_B1D)[:, 0]
        token_B = draw(logits_BW, sampling._replace(number=sampling.number + number))
        logp_B = jnp.take_along_axis(logits_BW, token_B[:, None], axis=1)[:, 0]
        return (cache, token_B), (token_B, logp_B - jax.nn.logsumexp(logits_BW, axis=1))

    (cache, _), (token_PB, logp_PB) = jax.lax.scan(one, (cache, token_B), jnp.arange(PIECE))
    return cache, token_PB, logp_PB


def bare_seconds(params, config: ModelConfig, batch: int, pieces: int) -> np.ndarray:
    """Seconds of each of `pieces` calls behind a first one, from contexts of one token; tokens come to the host."""
    cache = model.init_cache(config, batch, PIECE * (pieces + 1)).replace(empty=False)
    token_B, seconds = np.zeros(batch, np.int32), []
    for piece in range(pieces + 1):
        start = time.perf_counter()
        cache, *drawn = draw_piece(params, cache, token_B, plain_sampling(batch, PIECE * piece), config)
        token_PB, _ = jax.device_get(drawn)
        token_B = token_PB[-1]
        seconds.append(time.perf_counter() - start)
    return np.asarray(seconds[1:])


def plain_sampling(batch: int, number: int) -> Sampling:
    """Temperature 1, nothing cut off, a seed for each row."""
    zeros, ones = np.zeros(batch, np.int32), np.ones(batch, np.float32)
    return Sampling(
        seed=np.arange(batch, dtype=np.uint32), number=zeros + number, temperature=ones, top_k=zeros, top_p=ones,
        min_p=0 * ones, stop=np.full((batch, 1), -1, np.int32), stop_from=zeros,
    )  # fmt: skip
