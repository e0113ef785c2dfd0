"""Partial softmax attention in jax.numpy, one block of queries at a time."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.softmax_attention.window import LOG_ZERO, Window

SCORES = 2**22  # our choice: scores of a head in memory at a time


def attend_xla(
    q_BHTK: jax.Array, k_BGSK: jax.Array, v_BGSV: jax.Array, window: Window, scale: float
) -> tuple[jax.Array, jax.Array]:
    """`api.attend` in jax.numpy."""

    def block(_, inputs):
        q_BGHCK, window = inputs
        score, allowed = _scores(q_BGHCK, k_BGSK, window, scale)
        largest = jnp.max(score, axis=-1, initial=LOG_ZERO)
        weight = jnp.where(allowed, jnp.exp(score - largest[..., None]), 0)
        total = jnp.sum(weight, axis=-1)
        some = jnp.where(total > 0, total, 1)
        out = _product("BGHCS,BGSV->BGHCV", weight.astype(v_BGSV.dtype), v_BGSV) / some[..., None]
        return None, (out, jnp.where(total > 0, largest + jnp.log(some), LOG_ZERO))

    _, (out, logsumexp) = jax.lax.scan(block, None, (_grouped(q_BHTK, k_BGSK), _windows(window, k_BGSK)))
    return _ungrouped(out), _ungrouped(logsumexp)


def attend_gradients_xla(
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSV: jax.Array,
    window: Window,
    logsumexp: jax.Array,
    shift: jax.Array,
    d_out_BHTV: jax.Array,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`api.attend_gradients` in jax.numpy."""

    def block(d_kv, inputs):
        q_BGHCK, d_out_BGHCV, logsumexp_BGHC, shift_BGHC, window = inputs
        score, allowed = _scores(q_BGHCK, k_BGSK, window, scale)
        weight = jnp.where(allowed, jnp.exp(score - logsumexp_BGHC[..., None]), 0)
        d_weight = _product("BGHCV,BGSV->BGHCS", d_out_BGHCV, v_BGSV)
        d_score = (weight * (d_weight - shift_BGHC[..., None]) * scale).astype(q_BGHCK.dtype)
        d_k = d_kv[0] + _product("BGHCS,BGHCK->BGSK", d_score, q_BGHCK)
        d_v = d_kv[1] + _product("BGHCS,BGHCV->BGSV", weight.astype(v_BGSV.dtype), d_out_BGHCV)
        return (d_k, d_v), _product("BGHCS,BGSK->BGHCK", d_score, k_BGSK)

    blocks = functools.partial(_grouped, k_BGSK=k_BGSK)
    inputs = (*map(blocks, (q_BHTK, d_out_BHTV, logsumexp, shift)), _windows(window, k_BGSK))
    none = tuple(jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in (k_BGSK, v_BGSV))
    d_kv, d_q = jax.lax.scan(block, none, inputs)
    return _ungrouped(d_q), *d_kv


def _scores(q_BGHCK, k_BGSK, window: Window, scale: float):
    """(scores [B, G, H, C, S], whether the query attends to the key [B, 1, 1, C, S])."""
    score = _product("BGHCK,BGSK->BGHCS", q_BGHCK, k_BGSK) * scale
    first_BC1, last_BC1 = (x[..., None] for x in window)
    key_S = jnp.arange(k_BGSK.shape[2])
    allowed = ((first_BC1 <= key_S) & (key_S <= last_BC1))[:, None, None]
    return jnp.where(allowed, score, -jnp.inf), allowed


def _product(letters: str, a, b):
    return jnp.einsum(letters, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _blocks(length: int, keys: int) -> int:
    """Number of equal blocks of queries."""
    return next(n for n in range(-(-length * keys // SCORES), length + 1) if length % n == 0)


def _grouped(x_BHT, k_BGSK):
    """[B, G·H, T, …] -> [N, B, G, H, T/N, …]."""
    batch, groups, keys, _ = k_BGSK.shape
    _, heads, length, *rest = x_BHT.shape
    blocks = _blocks(length, keys)
    x_BGHNC = x_BHT.reshape(batch, groups, heads // groups, blocks, length // blocks, *rest)
    return jnp.moveaxis(x_BGHNC, 3, 0)


def _windows(window: Window, k_BGSK) -> Window:
    """The window by blocks of queries, [N, B, T/N] each."""
    return Window(*(_grouped(x[:, None], k_BGSK[:, :1])[:, :, 0, 0] for x in window))


def _ungrouped(x_NBGHC):
    """[N, B, G, H, C, …] -> [B, G·H, N·C, …]."""
    x_BGHNC = jnp.moveaxis(x_NBGHC, 0, 3)
    batch, groups, heads = x_BGHNC.shape[:3]
    return x_BGHNC.reshape(batch, groups * heads, -1, *x_BGHNC.shape[5:])
