"""Causal softmax attention over rows split among ranks, the devices along `context` (docs/architecture.md §15).

Rank r of R holds the r-th stretch of T/R neighbouring tokens. All ranks gather the small arrays (latents, or keys and
values of few heads) from which keys and values are computed. Late queries attend to more keys. To balance the work, a
rank computes the first half of its own queries and the second half of those of the mirrored rank R - 1 - r. Every rank
then computes 2R + 1 pairs of half stretches:

    half stretch of keys     0 1 2 3 4 5 6 7        R = 4
    rank 0, queries 0 and 7  q                      1 + 8 pairs
                             q q q q q q q q
    rank 1, queries 2 and 5  q q q                  3 + 6 pairs
                             q q q q q q

Keys and values of one half stretch exist at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.parallel.sharding import RULES, ArrayAxes, num_shards, per_device
from pallas_kernels.softmax_attention import LOG_ZERO, Window, attend, attend_gradients, document_window, merge


class Places(NamedTuple):
    """The pairs of half stretches of one rank: P = 2 of queries, S = 2R of keys."""

    pairs: jax.Array  # [2R + 1, 2] (half stretch of queries, half stretch of keys)
    window: Window  # [P, B, C] each: the keys of each query, numbered in the whole row


def check_rows(length: int, ranks: int) -> None:
    """Raises ValueError if rows of this length do not split into two equal stretches for each rank."""
    if ranks > 1 and length % (2 * ranks):
        raise ValueError(
            f"rows of {length} tokens cannot be split among {ranks} ranks (mesh axis 'context'), two equal stretches "
            f"each; the length must be a multiple of {2 * ranks}"
        )


def attention(
    expand: Callable[[Any, Any], tuple[jax.Array, jax.Array]],
    weights: Any,
    weight_axes: ArrayAxes,
    q_BTHK: jax.Array,
    kv: Any,
    kv_axes: ArrayAxes,
    docs_BT: jax.Array,
    scale: float,
) -> jax.Array:
    """Causal softmax attention inside documents, [B, T, H, V], on a mesh that splits the rows.

    Args:
      expand: expand(weights, kv) -> keys [B, C, G, K] and values [B, C, G, V] of any stretch of `kv`.
      weights: a tree of arrays for `expand`; `weight_axes` are their (size, logical axis) pairs.
      q_BTHK: queries. A mesh axis that splits query heads must split key heads too.
      kv: a tree of [B, T, …] arrays; `kv_axes` are the pairs of the dimensions after the tokens.
      docs_BT: document numbers of whole rows, 0 for padding.
      scale: factor of the scores.
    """
    tokens = ((len(q_BTHK), "batch"), (q_BTHK.shape[1], "tokens"))
    heads = (*tokens, (q_BTHK.shape[2], "heads"))

    def on_rank(*arguments):
        return (_on_rank(expand, scale, *arguments),)

    in_axes = (weight_axes, heads, (*tokens, *kv_axes), tokens[:1])
    return per_device(on_rank, in_axes, (heads,))(weights, q_BTHK, kv, docs_BT)[0]


def _on_rank(expand, scale: float, weights, q_BTHK, kv, docs_BT):
    """The part of one rank: T counts its own tokens, except in `docs_BT`, which has whole rows."""
    axis, ranks = RULES["tokens"], num_shards("tokens")
    rank = jax.lax.axis_index(axis)
    kv = jax.tree.map(lambda x: jax.lax.all_gather(x, axis, axis=1, tiled=True), kv)

    def stretches(x, count: int):
        return jnp.moveaxis(x.reshape(len(x), count, -1, *x.shape[2:]), 1, 0)

    own_P = jnp.stack([2 * rank, 2 * (ranks - 1 - rank) + 1])
    window = document_window(docs_BT, docs_BT.shape)
    places = Places(jnp.asarray(_pairs(ranks))[rank], Window(*(stretches(x, 2 * ranks)[own_P] for x in window)))
    q_PBHCK = jnp.swapaxes(stretches(_exchanged(q_BTHK), 2), 2, 3)
    o_PBHCV = _attend(expand, scale, weights, q_PBHCK, jax.tree.map(lambda x: stretches(x, 2 * ranks), kv), places)
    o_BPCHV = jnp.moveaxis(o_PBHCV, (0, 2), (1, 3))
    return _exchanged(o_BPCHV.reshape(len(q_BTHK), -1, *o_BPCHV.shape[3:]))


def _exchanged(x_BT):
    """`x_BT` with its second half swapped with that of the mirrored rank."""
    ranks = num_shards("tokens")
    first, second = jnp.split(x_BT, 2, axis=1)
    mirror = [(rank, ranks - 1 - rank) for rank in range(ranks)]
    return jnp.concatenate([first, jax.lax.ppermute(second, RULES["tokens"], mirror)], axis=1)


def _pairs(ranks: int) -> np.ndarray:
    """[R, 2R + 1, 2] int32: the (half stretch of queries, half stretch of keys) pairs of each rank."""
    own = [(2 * rank, 2 * (ranks - 1 - rank) + 1) for rank in range(ranks)]
    return np.array([[(p, s) for p, last in enumerate(lasts) for s in range(last + 1)] for lasts in own], np.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(expand, scale, weights, q_PBHCK, kv_S, places: Places):
    return _attend_forward(expand, scale, weights, q_PBHCK, kv_S, places)[0]


def _attend_forward(expand, scale, weights, q_PBHCK, kv_S, places: Places):
    """(out [P, B, H, C, V], residuals of backward)."""
    wide, (_, v) = jnp.promote_types(q_PBHCK.dtype, jnp.float32), jax.eval_shape(expand, weights, _of(kv_S, 0))
    shape = q_PBHCK.shape[:-1]

    def pair(merged, numbers):
        p, s = numbers
        k_BGSK, v_BGSV = _heads_first(expand(weights, _of(kv_S, s)))
        those = attend(q_PBHCK[p], k_BGSK, v_BGSV, _window(places, p, s), scale)
        return jax.tree.map(lambda old, new: old.at[p].set(new), merged, merge(_of(merged, p), those)), None

    empty = jnp.zeros((*shape, v.shape[-1]), wide), jnp.full(shape, LOG_ZERO, wide)
    (out, logsumexp), _ = jax.lax.scan(pair, empty, places.pairs)
    out = out.astype(v.dtype)
    return out, (weights, q_PBHCK, kv_S, places, out, logsumexp)


def _attend_backward(expand, scale, residuals, d_out):
    weights, q_PBHCK, kv_S, places, out, logsumexp = residuals
    wide = logsumexp.dtype
    shift = jnp.sum(d_out.astype(wide) * out.astype(wide), axis=-1)  # [P, B, H, C]

    def pair(grads, numbers):
        p, s = numbers
        (k, v), pull = jax.vjp(lambda *arguments: _heads_first(expand(*arguments)), weights, _of(kv_S, s))
        d_q, d_k, d_v = attend_gradients(
            q_PBHCK[p], k, v, _window(places, p, s), logsumexp[p], shift[p], d_out[p], scale
        )  # fmt: skip
        d_weights, d_kv = pull((d_k.astype(k.dtype), d_v.astype(v.dtype)))
        return (
            jax.tree.map(lambda total, x: total + x.astype(wide), grads[0], d_weights),
            grads[1].at[p].add(d_q),
            jax.tree.map(lambda total, x: total.at[s].add(x.astype(wide)), grads[2], d_kv),
        ), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide), (weights, q_PBHCK, kv_S))
    grads, _ = jax.lax.scan(pair, zeros, places.pairs)
    return *jax.tree.map(lambda grad, x: grad.astype(x.dtype), grads, (weights, q_PBHCK, kv_S)), None


_attend.defvjp(_attend_forward, _attend_backward)


def _of(tree, number):
    return jax.tree.map(lambda x: x[number], tree)


def _heads_first(kv):
    return tuple(jnp.swapaxes(x_BSGK, 1, 2) for x_BSGK in kv)


def _window(places: Places, p, s) -> Window:
    """The window of the queries of half stretch p, counted from the first key of half stretch s."""
    return Window(*(x_PBC[p] - s * x_PBC.shape[2] for x_PBC in places.window))
