"""Grouped-query attention of Ling 2.0 and linear-2.0 (docs/architecture.md §7). Lightning uses its projections too."""

import jax
import jax.numpy as jnp

from ling_jax.config import ModelConfig
from ling_jax.model.attention import cached_attention, pool_attention, softmax_attention
from ling_jax.model.joined import join, project
from ling_jax.model.layer_cache import LayerCache, read_leaf, read_pages, write_pages, write_tokens
from ling_jax.model.mixer import CacheSizes, Mixer
from ling_jax.model.norm import rms_norm
from ling_jax.model.rope import RopeTable, rotate_half
from ling_jax.model.token_info import TokenInfo
from ling_jax.parallel import context
from ling_jax.spec import Leaf, Params, Spec, normal, ones, zeros

CACHE_AXES = dict.fromkeys(("key", "value"), ("batch", None, "kv_heads", None))


def qkv_spec(config: ModelConfig, kv_heads: int, *, qk_norm: bool) -> Spec:
    """Spec of the query, key and value projections, their biases and the QK-norm weights."""
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
        spec |= {name: Leaf((c.head_dim,), (None,), ones, role="norm") for name in ("q_norm", "k_norm")}
    if c.qkv_bias:
        spec |= {
            f"{name}_bias": Leaf((heads, c.head_dim), (axis, None), zeros, role="bias")
            for name, (heads, axis) in sizes.items()
        }
    return spec


def out_spec(config: ModelConfig, value_dim: int, bias: bool) -> Spec:
    """Spec of the output projection [H, V, D] and its bias."""
    c = config
    spec = {"out": Leaf((c.num_heads, value_dim, c.hidden_size), ("heads", None, "embed"), normal(c.init_std))}
    return spec | ({"out_bias": Leaf((c.hidden_size,), (None,), zeros, role="bias")} if bias else {})


def gqa_spec(config: ModelConfig) -> Spec:
    """Spec of a GQA mixer."""
    qkv = qkv_spec(config, config.num_kv_heads, qk_norm=config.qk_norm and config.gqa_qk_norm)
    return qkv | out_spec(config, config.head_dim, config.out_bias)


def project_qkv(params: Params, x_BTD: jax.Array, rope_table: RopeTable, config: ModelConfig) -> list[jax.Array]:
    """`finish_qkv` of the layer's normed input x [B, T, D] times the three matrices."""
    sizes = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    return finish_qkv(params, project(params, x_BTD, sizes), rope_table, config)


def finish_qkv(params: Params, qkv: list[jax.Array], rope_table: RopeTable, config: ModelConfig) -> list[jax.Array]:
    """[q, k, v], each [B, T, heads, K], from the products of the layer's input.

    q and k are normed per head and rotated in their first dims (half pairing).
    """
    heads = []
    for name, x_BTHK in zip(("q", "k", "v"), qkv, strict=True):
        if f"{name}_bias" in params:
            x_BTHK = x_BTHK + params[f"{name}_bias"].astype(x_BTHK.dtype)
        if f"{name}_norm" in params:
            x_BTHK = rms_norm(x_BTHK, params[f"{name}_norm"], config.norm_eps)
        heads.append(x_BTHK if name == "v" else rotate_half(x_BTHK, rope_table))
    return heads


def project_out(params: Params, o_BTHV: jax.Array) -> jax.Array:
    """Output projection of the heads to [B, T, D], with the bias if there is one."""
    y_BTD = jnp.einsum("BTHV,HVD->BTD", o_BTHV, params["out"].astype(o_BTHV.dtype))
    return y_BTD + params["out_bias"].astype(o_BTHV.dtype) if "out_bias" in params else y_BTD


def gqa(
    params: Params,
    x_BTD: jax.Array,
    info: TokenInfo,
    cache: LayerCache | None,
    config: ModelConfig,
) -> tuple[jax.Array, LayerCache | None]:
    """GQA of the layer's normed input x [B, T, D]: (y [B, T, D], the cache with these tokens or None)."""
    q_BTHK, k_BTGK, v_BTGV = project_qkv(params, x_BTD, info.rope, config)
    scale = config.head_dim**-0.5
    for name, new_BTGK in {"key": k_BTGK, "value": v_BTGV}.items() if cache is not None else ():
        if info.pages is None:
            cache = write_tokens(cache, name, new_BTGK, info.places)
        else:
            cache = write_pages(cache, name, new_BTGK, info.places, CACHE_AXES)
    if info.split is not None:
        kv, kv_heads = (k_BTGK, v_BTGV), ((config.num_kv_heads, "kv_heads"),)
        o_BTHV = context.attention(_keys_and_values, (), (), q_BTHK, kv, kv_heads, info.split.docs, scale)
    elif info.last_visible is None:
        o_BTHV = softmax_attention(q_BTHK, k_BTGK, v_BTGV, info.docs, scale)
    elif info.pages is None:
        o_BTHV = cached_attention(q_BTHK, read_leaf(cache, "key"), read_leaf(cache, "value"), info.last_visible, scale)
    else:

        def read(cache, pages_Bn):
            return read_pages(cache, "key", pages_Bn), read_pages(cache, "value", pages_Bn)

        o_BTHV = pool_attention(q_BTHK, cache, CACHE_AXES, read, info.pages.table, info.last_visible, scale)
    return project_out(params, o_BTHV), cache


def serve_gqa(params: Params, config: ModelConfig) -> Params:
    """The weights of a GQA mixer as serving reads them."""
    del config
    return join(params, ("q", "k", "v"))


def _keys_and_values(_, kv):
    return kv


def gqa_cache_spec(config: ModelConfig, sizes: CacheSizes) -> Spec:
    """Keys and values of every token."""
    shape = (sizes.blocks, sizes.block_size, config.num_kv_heads, config.head_dim)
    return {name: Leaf(shape, axes, zeros, sizes.dtype) for name, axes in CACHE_AXES.items()}


def gqa_flops(config: ModelConfig, length: int) -> float:
    """Scores and values of causal attention: 3 · 2 · (T+1)/2 · H · 2K."""
    return 3 * (length + 1) * config.num_heads * 2 * config.head_dim


GQA = Mixer(gqa_spec, gqa, gqa_cache_spec, gqa_flops, serve=serve_gqa)
