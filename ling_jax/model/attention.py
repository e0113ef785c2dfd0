"""Causal softmax attention that GQA and MLA share."""

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.parallel.sharding import per_device, ways
from pallas_kernels.softmax_attention import softmax_attention_tpu, uses_kernels

LEAST_BLOCK, MOST_BLOCKS = 128, 8  # our choice: of eight blocks 44 % of the scores are never made


def cached_attention(q_BTHK, k_BSGK, v_BSGV, last_BT, scale: float):
    """[B, T, H, V]: as `softmax_attention`, over the S slots of a cache; each query sees slots 0 to its `last`."""
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    q_BTGHK = q_BTHK.reshape(*q_BTHK.shape[:2], k_BSGK.shape[2], -1, q_BTHK.shape[3])
    k_BSGK, v_BSGV = k_BSGK.astype(q_BTHK.dtype), v_BSGV.astype(q_BTHK.dtype)
    score_BGHTS = jnp.einsum("BTGHK,BSGK->BGHTS", q_BTGHK, k_BSGK, preferred_element_type=dtype) * scale
    allowed_BTS = jnp.arange(k_BSGK.shape[1]) <= last_BT[..., None]
    score_BGHTS = jnp.where(allowed_BTS[:, None, None], score_BGHTS, jnp.finfo(dtype).min)
    weight_BGHTS = jax.nn.softmax(score_BGHTS, axis=-1).astype(q_BTHK.dtype)
    out_BGHTV = jnp.einsum("BGHTS,BSGV->BGHTV", weight_BGHTS, v_BSGV)
    return jnp.moveaxis(out_BGHTV, 3, 1).reshape(*q_BTHK.shape[:3], -1)


def softmax_attention(q_BTHK, k_BSGK, v_BSGV, docs_BT, scale: float):
    """[B, T, H, V]: query head h attends to key/value head h // (H/G), causally and inside its document.

    `docs_BT` numbers the documents (0 padding) or is None; scores and softmax are in at least float32. A padding
    query's output means nothing and reaches no other token. On TPUs a kernel, where it suits.
    """
    if uses_kernels(q_BTHK, k_BSGK, v_BSGV, tokens=1):
        return kernel_attention(q_BTHK, k_BSGK, v_BSGV, docs_BT, scale)
    return blockwise_attention(q_BTHK, k_BSGK, v_BSGV, docs_BT, scale)


def kernel_attention(q_BTHK, k_BSGK, v_BSGV, docs_BT, scale: float, interpret: bool = False):
    """`softmax_attention` by the kernel for TPUs, each device with its rows and, if it can have theirs, its heads."""
    (batch, length, heads, _), groups = q_BTHK.shape, k_BSGK.shape[2]
    axis = "kv_heads" if groups % ways("kv_heads") == 0 else None
    queries, keys = (((batch, "batch"), (length, None), (count, axis)) for count in (heads, groups))
    attend = lambda *arguments: (softmax_attention_tpu(*arguments, scale, interpret=interpret),)  # noqa: E731
    in_axes = (queries, keys, keys, None if docs_BT is None else queries[:1])
    return per_device(attend, in_axes, (queries,))(q_BTHK, k_BSGK, v_BSGV, docs_BT)[0]


def blockwise_attention(q_BTHK, k_BSGK, v_BSGV, docs_BT, scale: float):
    """`softmax_attention` as jax.numpy has it: queries go in blocks, each against the keys up to its last; the scores
    behind them are never made."""
    batch, length, heads, _ = q_BTHK.shape
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    # Heads before tokens, as the products want them: XLA on a CPU multiplies other layouts at a fraction of the speed.
    q_BGHTK = jnp.moveaxis(q_BTHK.reshape(batch, length, k_BSGK.shape[2], -1, q_BTHK.shape[3]), 1, 3)
    k_BGKS, v_BGSV = jnp.moveaxis(k_BSGK, 1, 3), jnp.moveaxis(v_BSGV, 1, 2)
    block, outs = max(LEAST_BLOCK, -(-length // MOST_BLOCKS)), []
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
    """[B or 1, stop - start, stop]: which keys the queries from `start` on see."""
    causal_TS = np.arange(start, stop)[:, None] >= np.arange(stop)
    if docs_BT is None:
        return causal_TS[None]
    query_BT1, key_B1S = docs_BT[:, start:stop, None], docs_BT[:, None, :stop]
    return causal_TS & ((query_BT1 == key_B1S) | (query_BT1 == 0))
