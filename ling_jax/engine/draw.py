"""The next token of each row, drawn on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ling_jax.engine.noise import gumbel_noise

COLD = 1e-20  # logits divided by less may overflow, and no noise changes their order


class Sampling(NamedTuple):
    """How each row draws, [N] each."""

    seed: jax.Array  # uint32
    number: jax.Array  # int32 tokens that the request drew before: token i has the noise of fold_in(key(seed), i)
    temperature: jax.Array  # float32; 0, or below COLD, takes the likeliest token
    top_k: jax.Array  # int32; 0: all
    top_p: jax.Array  # float32; 1: all
    min_p: jax.Array  # float32; 0: all
    stop: jax.Array  # [N, K] int32 tokens that end the turn; -1 fills the row
    stop_from: jax.Array  # int32 number of the draw from which on they may be drawn


def draw(logits_NW: jax.Array, sampling: Sampling) -> jax.Array:
    """[N] int32 tokens from softmax(logits / temperature) after the filters, by Gumbel noise of each row's own key.

    top_k keeps the k likeliest tokens and those that equal the last of them; top_p the likeliest of these that
    together have that share; min_p those with at least that share of the likeliest one's probability.
    """
    early_N = sampling.number < sampling.stop_from
    logits_NW = jax.lax.cond(jnp.any(early_N), without_stops, lambda logits, *_: logits, logits_NW, early_N, sampling)
    greedy_N = sampling.temperature < COLD
    tempered_NW = logits_NW / jnp.where(greedy_N, 1, sampling.temperature)[:, None].astype(logits_NW.dtype)
    filtered = jnp.any((sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0))
    tempered_NW = jax.lax.cond(filtered, keep_likely, lambda logits, _: logits, tempered_NW, sampling)
    noise_NW = gumbel_noise(sampling.seed, sampling.number, logits_NW.shape[1], logits_NW.dtype)
    return likeliest(jnp.where(greedy_N[:, None], logits_NW, tempered_NW + noise_NW))


def without_stops(logits_NW: jax.Array, early_N: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits with -inf for the stop tokens of early rows."""
    stop_NK = jnp.where(early_N[:, None] & (sampling.stop >= 0), sampling.stop, logits_NW.shape[1])
    return logits_NW.at[jnp.arange(len(stop_NK))[:, None], stop_NK].set(-jnp.inf, mode="drop")


def likeliest(x_NW: jax.Array) -> jax.Array:
    """[N] int32 first place of each row's largest value: `jnp.argmax`, which XLA on a CPU runs 20 times slower."""
    size = x_NW.shape[1]
    is_largest_NW = x_NW == jnp.max(x_NW, axis=1, keepdims=True)
    place_N = jnp.min(jnp.where(is_largest_NW, jnp.arange(size, dtype=jnp.int32), size), axis=1)
    return jnp.minimum(place_N, size - 1)  # a row with NaN has no largest value


def keep_likely(logits_NW: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits with -inf outside what top_k, top_p and min_p keep; the likeliest token always stays."""
    sorted_NW = -jnp.sort(-logits_NW, axis=-1)
    size = logits_NW.shape[1]
    rank_W = jnp.arange(size)
    top_k_N1 = jnp.where(sampling.top_k > 0, sampling.top_k, size)[:, None]
    sorted_NW = jnp.where(rank_W < top_k_N1, sorted_NW, -jnp.inf)
    share_NW = jax.nn.softmax(sorted_NW, axis=-1)
    before_NW = jnp.cumsum(share_NW, axis=-1) - share_NW
    # Rounded sums may reach 1 before the last token: without top_p a row keeps it, whatever its neighbours ask for.
    top_p_N1 = jnp.where(sampling.top_p < 1, sampling.top_p, jnp.inf)[:, None]
    kept_NW = (before_NW < top_p_N1) & (share_NW >= sampling.min_p[:, None] * share_NW[:, :1])
    kept_NW = (kept_NW & (rank_W < top_k_N1)).at[:, 0].set(True)
    least_N1 = jnp.min(jnp.where(kept_NW, sorted_NW, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_NW >= least_N1, logits_NW, -jnp.inf)
