"""Causal softmax attention for GQA and MLA."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.model.layer_cache import LayerCache, LeafAxes, leaf_axes
from ling_jax.model.token_info import PAGE_SIZE
from ling_jax.parallel.sharding import num_shards, per_device
from pallas_kernels.softmax_attention import softmax_attention_tpu, uses_kernels

MIN_BLOCK, MAX_BLOCKS = 128, 8  # our choice: eight blocks skip 44 % of the scores
PAGED_BLOCK = 128  # keys between two updates of the running softmax; our choice


def cached_attention(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGV: jax.Array, last_BT: jax.Array, scale: float
) -> jax.Array:
    """Softmax attention over the S slots of a cache, [B, T, H, V] in q's dtype; query t reads slots 0 … last_BT[t].

    q [B, T, H, K], k [B, S, G, K], v [B, S, G, V]. Scores and softmax are in at least float32.
    """
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    q_BTGHK = q_BTHK.reshape(*q_BTHK.shape[:2], k_BSGK.shape[2], -1, q_BTHK.shape[3])
    k_BSGK, v_BSGV = k_BSGK.astype(q_BTHK.dtype), v_BSGV.astype(q_BTHK.dtype)
    score_BGHTS = jnp.einsum("BTGHK,BSGK->BGHTS", q_BTGHK, k_BSGK, preferred_element_type=dtype) * scale
    allowed_BTS = jnp.arange(k_BSGK.shape[1]) <= last_BT[..., None]
    score_BGHTS = jnp.where(allowed_BTS[:, None, None], score_BGHTS, jnp.finfo(dtype).min)
    weight_BGHTS = jax.nn.softmax(score_BGHTS, axis=-1).astype(q_BTHK.dtype)
    out_BGHTV = jnp.einsum("BGHTS,BSGV->BGHTV", weight_BGHTS, v_BSGV)
    return jnp.moveaxis(out_BGHTV, 3, 1).reshape(*q_BTHK.shape[:3], -1)


def paged_attention(
    q_BTHK: jax.Array,
    read: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    table_Bn: jax.Array,
    last_BT: jax.Array,
    scale: float,
) -> jax.Array:
    """`cached_attention` over pages: query t of row b reads positions 0 … last[b, t] of the pages `table[b]`.

    `read(pages [B, m])` returns their keys [B, S, G, K] and values [B, S, G, V]. Blocks of `PAGED_BLOCK` positions are
    added to a running softmax one after the other, as many as the longest row has: a row's result depends neither on
    other rows nor on the length of the table. Keys behind a row's last position are not looked at, even if they are
    NaN. The result for padding (a position past the table) is undefined.
    """
    dtype, per_block = jnp.promote_types(q_BTHK.dtype, jnp.float32), PAGED_BLOCK // PAGE_SIZE
    table_Bn = jnp.pad(table_Bn, ((0, 0), (0, -table_Bn.shape[1] % per_block)))
    last_BT = jnp.where(last_BT < table_Bn.shape[1] * PAGE_SIZE, last_BT, -1)
    groups = jax.eval_shape(read, table_Bn[:, :1])[0].shape[2]
    q_BTGHK = q_BTHK.reshape(*q_BTHK.shape[:2], groups, -1, q_BTHK.shape[3])

    def look(number):
        """(scores [B, G, H, T, S], values [B, S, G, V]) of a block."""
        position_S = number * PAGED_BLOCK + jnp.arange(PAGED_BLOCK)
        stored_BS11 = (position_S <= jnp.max(last_BT, axis=1, keepdims=True))[..., None, None]
        pages_Bn = jax.lax.dynamic_slice_in_dim(table_Bn, number * per_block, per_block, axis=1)
        k_BSGK, v_BSGV = (jnp.where(stored_BS11, x, 0).astype(q_BTHK.dtype) for x in read(pages_Bn))
        score_BGHTS = jnp.einsum("BTGHK,BSGK->BGHTS", q_BTGHK, k_BSGK, preferred_element_type=dtype) * scale
        allowed_BTS = position_S <= last_BT[..., None]
        return jnp.where(allowed_BTS[:, None, None], score_BGHTS, jnp.finfo(dtype).min), v_BSGV

    def weigh(score_BGHTS, v_BSGV, max_BGHT):
        """(sum of the weights [B, G, H, T], weighted sum of the values [B, G, H, T, V])."""
        weight_BGHTS = jnp.exp(score_BGHTS - max_BGHT[..., None])
        added = jnp.einsum("BGHTS,BSGV->BGHTV", weight_BGHTS.astype(v_BSGV.dtype), v_BSGV, preferred_element_type=dtype)
        return jnp.sum(weight_BGHTS, axis=-1), added

    def add_block(number, carry):
        max_BGHT, sum_BGHT, out_BGHTV = carry
        score_BGHTS, v_BSGV = look(number)
        new_BGHT = jnp.maximum(max_BGHT, jnp.max(score_BGHTS, axis=-1))
        more_BGHT, more_BGHTV = weigh(score_BGHTS, v_BSGV, new_BGHT)
        kept_BGHT = jnp.exp(max_BGHT - new_BGHT)
        return new_BGHT, sum_BGHT * kept_BGHT + more_BGHT, out_BGHTV * kept_BGHT[..., None] + more_BGHTV

    # Short contexts never enter the loop: on a CPU that costs as much as the block.
    score_BGHTS, v_BSGV = look(0)
    max_BGHT = jnp.max(score_BGHTS, axis=-1)
    first = max_BGHT, *weigh(score_BGHTS, v_BSGV, max_BGHT)
    _, sum_BGHT, out_BGHTV = jax.lax.fori_loop(1, jnp.max(last_BT) // PAGED_BLOCK + 1, add_block, first)
    out_BGHTV = (out_BGHTV / sum_BGHT[..., None]).astype(q_BTHK.dtype)
    return jnp.moveaxis(out_BGHTV, 3, 1).reshape(*q_BTHK.shape[:3], -1)


def pool_attention(
    q_BTHK: jax.Array,
    cache: LayerCache,
    axes: LeafAxes,
    read: Callable[[LayerCache, jax.Array], tuple[jax.Array, jax.Array]],
    table_Bn: jax.Array,
    last_BT: jax.Array,
    scale: float,
) -> jax.Array:
    """`paged_attention` over a pool: on a mesh each device reads its own rows from its own pages, for its heads.

    `read(cache, pages)` is the `read` of a cache that holds the arrays `axes`; the values of all heads have one width.
    """
    names = tuple(axes)

    def attend(q_BTHK, table_Bn, last_BT, repeat, number, *leaves):
        of_part = LayerCache(dict(zip(names, leaves, strict=True)), (repeat, number))
        return (paged_attention(q_BTHK, lambda pages_Bn: read(of_part, pages_Bn), table_Bn, last_BT, scale),)

    (batch, length, heads, _) = q_BTHK.shape
    rows = (batch, "batch")
    tokens = rows, (length, None), (heads, "heads")
    in_axes = (tokens, (rows,), (rows,), (), (), *(leaf_axes(cache, name, axes) for name in names))
    leaves = (cache.leaves[name] for name in names)
    return per_device(attend, in_axes, (tokens,))(q_BTHK, table_Bn, last_BT, *cache.position, *leaves)[0]


def softmax_attention(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGV: jax.Array, docs_BT: jax.Array | None, scale: float
) -> jax.Array:
    """Causal attention inside documents, [B, T, H, V]; query head h reads key/value head h // (H/G).

    q [B, T, H, K], k [B, T, G, K], v [B, T, G, V]. `docs_BT` numbers the documents, 0 for padding; None: each row is
    one document. Scores and softmax are in at least float32. The output at padding is undefined, and no other token
    reads it. On TPUs the Pallas kernel runs where the shapes suit it.
    """
    if uses_kernels(q_BTHK, k_BSGK, v_BSGV, tokens=1):
        return kernel_attention(q_BTHK, k_BSGK, v_BSGV, docs_BT, scale)
    return blockwise_attention(q_BTHK, k_BSGK, v_BSGV, docs_BT, scale)


def kernel_attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    docs_BT: jax.Array | None,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """`softmax_attention` by the TPU kernel. Each device computes its rows and, if they split evenly, heads."""
    (batch, length, heads, _), groups = q_BTHK.shape, k_BSGK.shape[2]
    axis = "kv_heads" if groups % num_shards("kv_heads") == 0 else None
    queries, keys = (((batch, "batch"), (length, None), (count, axis)) for count in (heads, groups))

    def attend(*arguments):
        return (softmax_attention_tpu(*arguments, scale, interpret=interpret),)

    in_axes = (queries, keys, keys, None if docs_BT is None else queries[:1])
    return per_device(attend, in_axes, (queries,))(q_BTHK, k_BSGK, v_BSGV, docs_BT)[0]


def blockwise_attention(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGV: jax.Array, docs_BT: jax.Array | None, scale: float
) -> jax.Array:
    """`softmax_attention` in jax.numpy, one block of queries at a time; later keys of a block get no scores."""
    batch, length, heads, _ = q_BTHK.shape
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    # Heads before tokens: XLA on a CPU multiplies other layouts at a fraction of the speed.
    q_BGHTK = jnp.moveaxis(q_BTHK.reshape(batch, length, k_BSGK.shape[2], -1, q_BTHK.shape[3]), 1, 3)
    k_BGKS, v_BGSV = jnp.moveaxis(k_BSGK, 1, 3), jnp.moveaxis(v_BSGV, 1, 2)
    block, outs = max(MIN_BLOCK, -(-length // MAX_BLOCKS)), []
    for start in range(0, length, block):
        stop = min(start + block, length)
        score_BGHTS = jnp.einsum(
            "BGHTK,BGKS->BGHTS", q_BGHTK[..., start:stop, :], k_BGKS[..., :stop], preferred_element_type=dtype
        )
        allowed_BTS = _allowed(docs_BT, start, stop)[:, None, None]
        score_BGHTS = jnp.where(allowed_BTS, score_BGHTS * scale, jnp.finfo(dtype).min)
        weight_BGHTS = jax.nn.softmax(score_BGHTS, axis=-1).astype(v_BSGV.dtype)
        outs.append(jnp.einsum("BGHTS,BGSV->BGHTV", weight_BGHTS, v_BGSV[:, :, :stop]))
    return jnp.moveaxis(jnp.concatenate(outs, axis=3), 3, 1).reshape(batch, length, heads, -1)


def _allowed(docs_BT, start: int, stop: int):
    """[B or 1, stop - start, stop] bool: whether query start + i attends to key j."""
    causal_TS = np.arange(start, stop)[:, None] >= np.arange(stop)
    if docs_BT is None:
        return causal_TS[None]
    query_BT1, key_B1S = docs_BT[:, start:stop, None], docs_BT[:, None, :stop]
    return causal_TS & ((query_BT1 == key_B1S) | (query_BT1 == 0))
