"""Causal softmax attention over rows split among ranks, the devices along `context` (docs/architecture.md §15).

Rank r of R has the r-th stretch of T/R neighbouring tokens. The few numbers that keys and values are made of are
gathered. Queries of late tokens see more keys, so a rank computes the first half of its own queries and the second half
of the mirrored rank's (R - 1 - r): each then has 2R + 1 pairs of half stretches, whatever its place. Keys and values of
one half stretch are made at a time, and scores of a block of its queries.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.parallel.sharding import RULES, per_device, ways

SCORES = 2**22  # our choice: at most so many scores of a head at a time


class Places(NamedTuple):
    """Where queries and keys stand; P = 2 stretches of queries, S = 2R of keys."""

    pairs: jax.Array  # [2R + 1, 2] which stretch of queries sees which of keys
    query_docs: jax.Array  # [P, N, B, C]
    query_at: jax.Array  # [P, N, C] in the row
    key_docs: jax.Array  # [S, B, C]
    key_at: jax.Array  # [S, C]


class Merged(NamedTuple):
    """Softmax over the keys so far, of all queries in their blocks."""

    largest: jax.Array  # [P, N, B, G, H, C] score
    total: jax.Array  # [P, N, B, G, H, C] Σ exp(score - largest)
    out: jax.Array  # [P, N, B, G, H, C, V] Σ exp(score - largest) v


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
    `docs_BT` numbers the documents of whole rows; padding (0) sees all that is earlier.
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
    q_PBCHK, docs_SBC = stretches(_exchanged(q_BTHK), 2), stretches(docs_BT, 2 * ranks)
    own_P = jnp.stack([2 * rank, 2 * (ranks - 1 - rank) + 1])
    at_SC = jnp.arange(docs_BT.shape[1]).reshape(2 * ranks, -1)
    blocks = _blocks(at_SC.shape[1])
    places = Places(
        pairs=jnp.asarray(_pairs(ranks))[rank],
        query_docs=_in_blocks(docs_SBC[own_P], blocks),
        query_at=at_SC[own_P].reshape(2, blocks, -1),
        key_docs=docs_SBC,
        key_at=at_SC,
    )
    kv_S = jax.tree.map(lambda x: stretches(x, 2 * ranks), kv)
    o_PNBCHV = _attend(expand, scale, weights, _in_blocks(q_PBCHK, blocks), kv_S, places)
    o_BPNCHV = jnp.moveaxis(o_PNBCHV, 2, 0)
    return _exchanged(o_BPNCHV.reshape(len(q_BTHK), -1, *o_BPNCHV.shape[4:]))


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


def _blocks(length: int) -> int:
    """Into how many equal blocks the queries of a stretch go."""
    least = -(-length * length // SCORES)
    return next(n for n in range(least, length + 1) if length % n == 0)


def _in_blocks(x_PBC, blocks: int):
    """[P, B, C, …] -> [P, N, B, C/N, …]."""
    return jnp.moveaxis(x_PBC.reshape(*x_PBC.shape[:2], blocks, -1, *x_PBC.shape[3:]), 2, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(expand, scale, weights, q_PNBCHK, kv_S, places: Places):
    return _forward(expand, scale, weights, q_PNBCHK, kv_S, places)[0]


def _attend_forward(expand, scale, weights, q_PNBCHK, kv_S, places: Places):
    out, logsumexp = _forward(expand, scale, weights, q_PNBCHK, kv_S, places)
    return out, (weights, q_PNBCHK, kv_S, places, out, logsumexp)


def _forward(expand, scale, weights, q_PNBCHK, kv_S, places: Places):
    """(out [P, N, B, C, H, V], logsumexp of the scores [P, N, B, G, H, C])."""
    k, v = jax.eval_shape(expand, weights, jax.tree.map(lambda x: x[0], kv_S))
    wide = jnp.promote_types(q_PNBCHK.dtype, jnp.float32)
    q_PNBGHCK = _grouped(q_PNBCHK, k.shape[2])
    shape = q_PNBGHCK.shape[:-1]
    empty = Merged(jnp.full(shape, jnp.finfo(wide).min), jnp.zeros(shape, wide), jnp.zeros((*shape, v.shape[-1]), wide))

    def pair(merged, numbers):
        p, s = numbers
        k_BSGK, v_BSGV = expand(weights, jax.tree.map(lambda x: x[s], kv_S))

        def block(_, inputs):
            q_BGHCK, docs_BC, at_C, before = inputs
            score, allowed = _scores(q_BGHCK, k_BSGK, scale, docs_BC, at_C, places, s)
            largest = jnp.maximum(before.largest, jnp.max(score, axis=-1))
            weight = jnp.where(allowed, jnp.exp(score - largest[..., None]), 0)
            fade = jnp.exp(before.largest - largest)
            new_out = jnp.einsum("BGHCS,BSGV->BGHCV", weight.astype(v_BSGV.dtype), v_BSGV, preferred_element_type=wide)
            total = fade * before.total + weight.sum(axis=-1)
            return None, Merged(largest, total, fade[..., None] * before.out + new_out)

        of_stretch = lambda tree: jax.tree.map(lambda x: x[p], tree)  # noqa: E731
        _, after = jax.lax.scan(block, None, of_stretch((q_PNBGHCK, places.query_docs, places.query_at, merged)))
        return jax.tree.map(lambda old, new: old.at[p].set(new), merged, after), None

    merged, _ = jax.lax.scan(pair, empty, places.pairs)
    out = (merged.out / merged.total[..., None]).astype(v.dtype)
    return _ungrouped(out), merged.largest + jnp.log(merged.total)


def _attend_backward(expand, scale, residuals, d_out):
    weights, q_PNBCHK, kv_S, places, out, logsumexp = residuals
    k, _ = jax.eval_shape(expand, weights, jax.tree.map(lambda x: x[0], kv_S))
    wide = logsumexp.dtype
    q, d_out, out = (_grouped(x, k.shape[2]) for x in (q_PNBCHK, d_out, out))
    shift = jnp.sum(d_out.astype(wide) * out.astype(wide), axis=-1)  # [P, N, B, G, H, C]

    def pair(grads, numbers):
        p, s = numbers
        (k_BSGK, v_BSGV), pull = jax.vjp(expand, weights, jax.tree.map(lambda x: x[s], kv_S))

        def block(d_kv, inputs):
            q_BGHCK, docs_BC, at_C, d_out_BGHCV, lse_BGHC, shift_BGHC = inputs
            score, allowed = _scores(q_BGHCK, k_BSGK, scale, docs_BC, at_C, places, s)
            weight = jnp.where(allowed, jnp.exp(score - lse_BGHC[..., None]), 0)
            d_weight = jnp.einsum("BGHCV,BSGV->BGHCS", d_out_BGHCV, v_BSGV, preferred_element_type=wide)
            d_score = (weight * (d_weight - shift_BGHC[..., None]) * scale).astype(q_BGHCK.dtype)
            product = functools.partial(jnp.einsum, preferred_element_type=wide)
            d_k = d_kv[0] + product("BGHCS,BGHCK->BSGK", d_score, q_BGHCK)
            d_v = d_kv[1] + product("BGHCS,BGHCV->BSGV", weight.astype(v_BSGV.dtype), d_out_BGHCV)
            return (d_k, d_v), product("BGHCS,BSGK->BGHCK", d_score, k_BSGK)

        none = jnp.zeros(k_BSGK.shape, wide), jnp.zeros(v_BSGV.shape, wide)
        of_stretch = jax.tree.map(lambda x: x[p], (q, places.query_docs, places.query_at, d_out, logsumexp, shift))
        (d_k, d_v), d_q = jax.lax.scan(block, none, of_stretch)
        d_weights, d_kv = pull((d_k.astype(k_BSGK.dtype), d_v.astype(v_BSGV.dtype)))
        add = lambda total, x: total + x.astype(wide)  # noqa: E731
        return (
            jax.tree.map(add, grads[0], d_weights),
            grads[1].at[p].add(d_q),
            jax.tree.map(lambda total, x: total.at[s].add(x.astype(wide)), grads[2], d_kv),
        ), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide), (weights, q, kv_S))
    grads, _ = jax.lax.scan(pair, zeros, places.pairs)
    like = lambda grad, x: grad.astype(x.dtype)  # noqa: E731
    d_weights, d_q, d_kv = jax.tree.map(like, grads, (weights, q, kv_S))
    return d_weights, _ungrouped(d_q), d_kv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _scores(q_BGHCK, k_BSGK, scale: float, docs_BC, at_C, places: Places, s):
    """(scores of the queries and the keys of stretch s [B, G, H, C, S], which count [B, 1, 1, C, S])."""
    wide = jnp.promote_types(q_BGHCK.dtype, jnp.float32)
    score = jnp.einsum("BGHCK,BSGK->BGHCS", q_BGHCK, k_BSGK, preferred_element_type=wide) * scale
    same_BCS = (docs_BC[:, :, None] == places.key_docs[s][:, None]) | (docs_BC[:, :, None] == 0)
    allowed = (same_BCS & (at_C[:, None] >= places.key_at[s]))[:, None, None]
    return jnp.where(allowed, score, jnp.finfo(wide).min), allowed


def _grouped(x_PNBCHK, groups: int):
    """[P, N, B, C, G·H, K] -> [P, N, B, G, H, C, K]: heads before tokens, as the products want them."""
    return jnp.moveaxis(x_PNBCHK.reshape(*x_PNBCHK.shape[:4], groups, -1, x_PNBCHK.shape[5]), 3, 5)


def _ungrouped(x_PNBGHCK):
    x_PNBCGHK = jnp.moveaxis(x_PNBGHCK, 5, 3)
    return x_PNBCGHK.reshape(*x_PNBCGHK.shape[:4], -1, x_PNBCGHK.shape[6])
