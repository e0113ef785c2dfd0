"""Causal softmax attention over rows split among ranks, the devices along `context` (docs/architecture.md §15).

Rank r of R has the r-th stretch of T/R neighbouring tokens. The few numbers that keys and values are made of are
gathered. Queries of late tokens see more keys, so a rank computes the first half of its own queries and the second half
of the mirrored rank's (R - 1 - r): each then has 2R + 1 pairs of half stretches, whatever its place. Keys and values of
one half stretch are made at a time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.parallel.sharding import RULES, per_device, ways
from pallas_kernels.softmax_attention import LEAST, Window, attend, attend_gradients, document_window, merge


class Places(NamedTuple):
    """Where queries and keys stand; P = 2 stretches of queries, S = 2R of keys."""

    pairs: jax.Array  # [2R + 1, 2] which stretch of queries sees which of keys
    sees: Window  # [P, B, C] each, in the row


def check_rows(length: int, ranks: int) -> None:
    """Raises ValueError where rows of that length cannot be split among so many ranks."""
    if ranks > 1 and length % (2 * ranks):
        raise ValueError(
            f"rows of {length} tokens cannot be split among {ranks} ranks (mesh axis 'context'), two equal stretches "
            f"each; the length must be a multiple of {2 * ranks}"
        )


def attention(expand, weights, weight_axes, q_BTHK, kv, kv_axes, docs_BT, scale: float):
    """[B, T, H, V]: each query's softmax over the earlier tokens of its document, on a mesh that splits the rows.

    `kv` is a tree of [B, T, …] arrays; `expand(weights, kv)` makes keys [B, T, G, K] and values [B, T, G, V] of any
    stretch of them. Axes are (size, logical axis) pairs: all of `weights`, and those of `kv` behind the tokens.
    `docs_BT` numbers the documents of whole rows, 0 being padding. What splits query heads has to split key heads too.
    """
    tokens = ((len(q_BTHK), "batch"), (q_BTHK.shape[1], "tokens"))
    heads = (*tokens, (q_BTHK.shape[2], "heads"))
    on_rank = lambda *arguments: (_on_rank(expand, scale, *arguments),)  # noqa: E731
    in_axes = (weight_axes, heads, (*tokens, *kv_axes), tokens[:1])
    return per_device(on_rank, in_axes, (heads,))(weights, q_BTHK, kv, docs_BT)[0]


def _on_rank(expand, scale: float, weights, q_BTHK, kv, docs_BT):
    """One rank's part: T is that of its own queries, keys and values, but of whole rows in `docs_BT`."""
    axis, ranks = RULES["tokens"], ways("tokens")
    rank = jax.lax.axis_index(axis)
    kv = jax.tree.map(lambda x: jax.lax.all_gather(x, axis, axis=1, tiled=True), kv)
    stretches = lambda x, count: jnp.moveaxis(x.reshape(len(x), count, -1, *x.shape[2:]), 1, 0)  # noqa: E731
    own_P = jnp.stack([2 * rank, 2 * (ranks - 1 - rank) + 1])
    sees = document_window(docs_BT, docs_BT.shape)
    places = Places(jnp.asarray(_pairs(ranks))[rank], Window(*(stretches(x, 2 * ranks)[own_P] for x in sees)))
    q_PBHCK = jnp.swapaxes(stretches(_exchanged(q_BTHK), 2), 2, 3)
    o_PBHCV = _attend(expand, scale, weights, q_PBHCK, jax.tree.map(lambda x: stretches(x, 2 * ranks), kv), places)
    o_BPCHV = jnp.moveaxis(o_PBHCV, (0, 2), (1, 3))
    return _exchanged(o_BPCHV.reshape(len(q_BTHK), -1, *o_BPCHV.shape[3:]))


def _exchanged(x_BT):
    """The second half is swapped with the mirrored rank's."""
    ranks = ways("tokens")
    first, second = jnp.split(x_BT, 2, axis=1)
    mirror = [(rank, ranks - 1 - rank) for rank in range(ranks)]
    return jnp.concatenate([first, jax.lax.ppermute(second, RULES["tokens"], mirror)], axis=1)


def _pairs(ranks: int) -> np.ndarray:
    """[R, 2R + 1, 2]: the (stretch of queries, stretch of keys) that each rank computes."""
    own = [(2 * rank, 2 * (ranks - 1 - rank) + 1) for rank in range(ranks)]
    return np.array([[(p, s) for p, last in enumerate(lasts) for s in range(last + 1)] for lasts in own], np.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(expand, scale, weights, q_PBHCK, kv_S, places: Places):
    return _attend_forward(expand, scale, weights, q_PBHCK, kv_S, places)[0]


def _attend_forward(expand, scale, weights, q_PBHCK, kv_S, places: Places):
    """(out [P, B, H, C, V], what backward needs)."""
    wide, (_, v) = jnp.promote_types(q_PBHCK.dtype, jnp.float32), jax.eval_shape(expand, weights, _of(kv_S, 0))
    shape = q_PBHCK.shape[:-1]

    def pair(merged, numbers):
        p, s = numbers
        k_BGSK, v_BGSV = _heads_first(expand(weights, _of(kv_S, s)))
        those = attend(q_PBHCK[p], k_BGSK, v_BGSV, _window(places, p, s), scale)
        return jax.tree.map(lambda old, new: old.at[p].set(new), merged, merge(_of(merged, p), those)), None

    empty = jnp.zeros((*shape, v.shape[-1]), wide), jnp.full(shape, LEAST, wide)
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
    """What queries of stretch p see, counted from the first key of stretch s."""
    return Window(*(x_PBC[p] - s * x_PBC.shape[2] for x_PBC in places.sees))
