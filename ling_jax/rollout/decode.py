"""Compiled pieces of decoding: rows of a cache that draw their next tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ling_jax.config import ModelConfig
from ling_jax.model import Cache, forward_with_cache
from ling_jax.model.loss import head_logits
from ling_jax.rollout.sampler import sample


class Context(NamedTuple):
    """What rows have read so far."""

    cache: Cache
    logits: jax.Array  # [B, W] of the next token


class Rows(NamedTuple):
    """How each row goes on, [B] each; the host knows it, so it is no part of the state."""

    live: jax.Array  # whether it draws at all
    seed: jax.Array
    drawn: jax.Array  # tokens drawn before: token i is drawn with fold_in(key(seed), i)
    limit: jax.Array  # tokens that it may have drawn in the end
    temperature: jax.Array
    top_p: jax.Array


def read_on(params, tokens, live, cache: Cache, config: ModelConfig) -> Context:
    """The context behind these tokens [B, T], of which `live` [B, T] count; the logits of a row without any mean
    nothing."""
    hidden_BTD, _, cache = forward_with_cache(params, tokens, config, cache, segment_ids=live)
    last_B = jnp.max(jnp.where(live > 0, jnp.arange(live.shape[1]), 0), axis=1)
    last_B1D = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)
    return Context(cache, head_logits(params["head"], last_B1D)[:, 0])


def decode(params, context: Context, rows: Rows, end, config: ModelConfig, piece: int):
    """(context, tokens [B, piece], logps [B, piece], count [B] of those that each row drew).

    A live row draws until an end token (one of `end`, which is read too), its limit or the piece's end, and stays as
    it is afterwards; the rest of its tokens means nothing. Where all rows have ended, so does the piece.
    """
    keys_B = jax.vmap(jax.random.key)(rows.seed)
    shape = (piece, rows.live.shape[0])
    logps_PB = jnp.zeros(shape, context.logits.dtype)

    def unfinished(carry):
        return (carry[0] < piece) & jnp.any(carry[1].live)

    def step(carry):
        i, rows, context, tokens_PB, logps_PB = carry
        keys = jax.vmap(jax.random.fold_in)(keys_B, rows.drawn)
        token_B, logp_B = sample(context.logits, keys, rows.temperature, rows.top_p)
        context = read_on(params, token_B[:, None], rows.live.astype(jnp.int32)[:, None], context.cache, config)
        drawn_B = rows.drawn + rows.live
        live_B = rows.live & ~jnp.isin(token_B, end) & (drawn_B < rows.limit)
        rows = rows._replace(live=live_B, drawn=drawn_B)
        return i + 1, rows, context, tokens_PB.at[i].set(token_B), logps_PB.at[i].set(logp_B)

    start = (0, rows, context, jnp.zeros(shape, jnp.int32), logps_PB)
    _, after, context, tokens_PB, logps_PB = jax.lax.while_loop(unfinished, step, start)
    return context, tokens_PB.T, logps_PB.T, after.drawn - rows.drawn
