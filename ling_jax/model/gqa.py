"""Grouped-query attention of Ling 2.0 and linear-2.0; Lightning shares its projections (docs/architecture.md §7)."""

import jax.numpy as jnp

from ling_jax.config import ModelConfig
from ling_jax.model.attention import cached_attention, softmax_attention
from ling_jax.model.layer_cache import put_tokens, read
from ling_jax.model.norm import rms_norm
from ling_jax.model.rope import rotate_half
from ling_jax.parallel import context
from ling_jax.spec import Leaf, Spec, normal, ones, zeros


def qkv_spec(config: ModelConfig, kv_heads: int, *, qk_norm: bool) -> Spec:
    """Query, key and value projections, their biases and the norms of queries and keys."""
    c, init, kv_axis = (
        config,
        normal(config.init_std),
        "heads" if kv_heads == config.num_heads else "kv_heads",
    )
    sizes = {"q": (c.num_heads, "heads"), "k": (kv_heads, kv_axis), "v": (kv_heads, kv_axis)}
    spec = {
        name: Leaf((c.hidden_size, heads, c.head_dim), ("embed", axis, None), init)
        for name, (heads, axis) in sizes.items()
    }
    if qk_norm:
        spec |= {name: Leaf((c.head_dim,), (None,), ones) for name in ("q_norm", "k_norm")}
    if c.qkv_bias:
        spec |= {
            f"{name}_bias": Leaf((heads, c.head_dim), (axis, None), zeros) for name, (heads, axis) in sizes.items()
        }
    return spec


def out_spec(config: ModelConfig, value_dim: int, bias: bool) -> Spec:
    c = config
    spec = {"out": Leaf((c.num_heads, value_dim, c.hidden_size), ("heads", None, "embed"), normal(c.init_std))}
    return spec | ({"out_bias": Leaf((c.hidden_size,), (None,), zeros)} if bias else {})


def gqa_spec(config: ModelConfig) -> Spec:
    qkv = qkv_spec(config, config.num_kv_heads, qk_norm=config.qk_norm and config.gqa_qk_norm)
    return qkv | out_spec(config, config.head_dim, config.out_bias)


def project_qkv(params, x_BTD, rope_table, config: ModelConfig):
    """q, k, v: projected, q and k normed per head and rotated in their first dims (half pairing)."""
    heads = []
    for name in ("q", "k", "v"):
        x_BTHK = jnp.einsum("BTD,DHK->BTHK", x_BTD, params[name].astype(x_BTD.dtype))
        if f"{name}_bias" in params:
            x_BTHK = x_BTHK + params[f"{name}_bias"].astype(x_BTD.dtype)
        if f"{name}_norm" in params:
            x_BTHK = rms_norm(x_BTHK, params[f"{name}_norm"], config.norm_eps)
        heads.append(x_BTHK if name == "v" else rotate_half(x_BTHK, rope_table))
    return heads


def project_out(params, o_BTHV):
    y_BTD = jnp.einsum("BTHV,HVD->BTD", o_BTHV, params["out"].astype(o_BTHV.dtype))
    return y_BTD + params["out_bias"].astype(o_BTHV.dtype) if "out_bias" in params else y_BTD


def gqa(params, x_BTD, sequence, log_decay_H, cache, config: ModelConfig):
    """(softmax attention with `num_kv_heads` key/value heads, the cache with these tokens); x is the layer's normed
    input."""
    del log_decay_H
    q_BTHK, k_BTGK, v_BTGV = project_qkv(params, x_BTD, sequence.rope, config)
    scale = config.head_dim**-0.5
    if cache is not None:
        cache = put_tokens(cache, "key", k_BTGK, sequence.slots)
        cache = put_tokens(cache, "value", v_BTGV, sequence.slots)
    if sequence.split is not None:
        kv, kv_heads = (k_BTGK, v_BTGV), ((config.num_kv_heads, "kv_heads"),)
        o_BTHV = context.attention(_as_they_are, (), (), q_BTHK, kv, kv_heads, sequence.split.docs, scale)
    elif sequence.sees is None:
        o_BTHV = softmax_attention(q_BTHK, k_BTGK, v_BTGV, sequence.docs, scale)
    else:
        o_BTHV = cached_attention(q_BTHK, read(cache, "key"), read(cache, "value"), sequence.sees, scale)
    return project_out(params, o_BTHV), cache


def _as_they_are(_, kv):
    return kv
