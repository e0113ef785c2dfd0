"""Choosing the next token."""

import jax
import jax.numpy as jnp


def sample(logits_BW, keys_B, temperature_B, top_p_B):
    """(token [B], its log-probability under the model [B]).

    Row b draws from softmax(logits / temperature) cut down to the fewest tokens that together have `top_p` of it;
    temperature 0 takes the likeliest. The log-probability is the model's own: temperature 1, nothing cut.
    """
    logps_BW = jax.nn.log_softmax(logits_BW, axis=-1)
    greedy_B = temperature_B == 0
    tempered_BW = logits_BW / jnp.where(greedy_B, 1, temperature_B)[:, None]
    tempered_BW = jax.lax.cond(jnp.any(top_p_B < 1), keep_nucleus, lambda logits, _: logits, tempered_BW, top_p_B)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, tempered_BW)
    token_B = jnp.where(greedy_B, jnp.argmax(logits_BW, axis=-1), drawn_B).astype(jnp.int32)
    return token_B, jnp.take_along_axis(logps_BW, token_B[:, None], axis=-1)[:, 0]


def keep_nucleus(logits_BW, top_p_B):
    """-inf outside the likeliest tokens that together have at least `top_p`; the likeliest always stays."""
    sorted_BW = -jnp.sort(-logits_BW, axis=-1)
    probability_BW = jax.nn.softmax(sorted_BW, axis=-1)
    before_BW = jnp.cumsum(probability_BW, axis=-1) - probability_BW
    kept_BW = (before_BW < top_p_B[:, None]).at[:, 0].set(True)
    least_B = jnp.min(jnp.where(kept_BW, sorted_BW, jnp.inf), axis=-1)
    return jnp.where(logits_BW >= least_B[:, None], logits_BW, -jnp.inf)
