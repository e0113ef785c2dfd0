"""Multi-head latent attention (docs/architecture.md §6)."""

import functools

import jax
import jax.numpy as jnp

from ling_jax.config import ModelConfig
from ling_jax.model.attention import cached_attention, pool_attention, softmax_attention
from ling_jax.model.gqa import out_spec, project_out
from ling_jax.model.joined import join, project
from ling_jax.model.layer_cache import LayerCache, read_leaf, read_pages, write_pages, write_tokens
from ling_jax.model.mixer import CacheSizes, Mixer
from ling_jax.model.norm import rms_norm
from ling_jax.model.rope import RopeTable, rotate_interleaved, yarn_mscale
from ling_jax.model.token_info import TokenInfo
from ling_jax.parallel import context
from ling_jax.spec import Leaf, Params, Spec, normal, ones, zeros

LATENT_NORM_EPS = 1e-6  # official code; independent of `norm_eps`
CACHE_AXES = {"latent": ("batch", None, None)}  # all heads read the same


def mla_spec(config: ModelConfig) -> Spec:
    """Spec of an MLA mixer."""
    c, init, latent = config, normal(config.init_std), latent_width(config)
    spec = {
        "kv_a": Leaf((c.hidden_size, latent), ("embed", None), init),
        "kv_a_norm": Leaf((c.kv_lora_rank,), (None,), ones, role="norm"),
        "kv_b": Leaf((c.kv_lora_rank, c.num_heads, c.nope_dim + c.v_dim), ("latent", "heads", None), init),
    }
    if c.q_lora_rank is None:
        spec["q"] = Leaf((c.hidden_size, c.num_heads, c.nope_dim + c.rope_dim), ("embed", "heads", None), init)
    else:
        spec["q_a"] = Leaf((c.hidden_size, c.q_lora_rank), ("embed", None), init)
        spec["q_a_norm"] = Leaf((c.q_lora_rank,), (None,), ones, role="norm")
        spec["q_b"] = Leaf((c.q_lora_rank, c.num_heads, c.nope_dim + c.rope_dim), ("latent", "heads", None), init)
    if c.qkv_bias:
        spec["kv_a_bias"] = Leaf((latent,), (None,), zeros, role="bias")
        if c.q_lora_rank is not None:
            spec["q_a_bias"] = Leaf((c.q_lora_rank,), (None,), zeros, role="bias")
    return spec | out_spec(c, c.v_dim, c.qkv_bias)


def latent_width(config: ModelConfig) -> int:
    """Numbers that the cache stores for each token: the latent and the rope key."""
    return config.kv_lora_rank + config.rope_dim


def softmax_scale(config: ModelConfig) -> float:
    """(nope + rope)^-0.5, times YaRN's mscale squared where `mscale_all_dim` is given."""
    scale, yarn = (config.nope_dim + config.rope_dim) ** -0.5, config.rope_scaling
    if yarn is not None and yarn.mscale_all_dim:
        scale *= yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale


def mla(
    params: Params,
    x_BTD: jax.Array,
    info: TokenInfo,
    cache: LayerCache | None,
    config: ModelConfig,
) -> tuple[jax.Array, LayerCache | None]:
    """MLA of the layer's normed input x [B, T, D]: (y [B, T, D], the cache with these tokens or None)."""
    q_BTHK = queries(params, x_BTD, info.latent_rope, config)
    latent_BTR = jnp.concatenate(latents(params, x_BTD, info.latent_rope, config), axis=-1)
    if info.pages is not None:
        cache = write_pages(cache, "latent", latent_BTR, info.places, CACHE_AXES)
    elif cache is not None:
        cache = write_tokens(cache, "latent", latent_BTR, info.places)
    if info.last_visible is None:
        o_BTHV = _expanded(params, q_BTHK, latent_BTR, info, config)
    else:
        o_BTHV = _absorbed(params, q_BTHK, cache, info, config)
    return project_out(params, o_BTHV), cache


def _expanded(params, q_BTHK, latent_BTR, info, config: ModelConfig):
    """Attention with the keys and values of every head, [B, T, H, V]; cheapest if all tokens are new."""
    kv_b_RHK, scale = params["kv_b"], softmax_scale(config)
    expand = functools.partial(keys_and_values, config=config)
    if info.split is None:
        return softmax_attention(q_BTHK, *expand(kv_b_RHK, latent_BTR), info.docs, scale)
    kv_b_axes = ((config.kv_lora_rank, None), (config.num_heads, "heads"))
    return context.attention(expand, kv_b_RHK, kv_b_axes, q_BTHK, latent_BTR, (), info.split.docs, scale)


def keys_and_values(kv_b_RHK: jax.Array, latent_BTR: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """(keys [B, T, H, nope + rope], values [B, T, H, V]) from cached vectors: the latent, then the rope key."""
    latent_BTR, k_rope_BTK = jnp.split(latent_BTR, [config.kv_lora_rank], axis=-1)
    kv_BTHK = jnp.einsum("BTR,RHK->BTHK", latent_BTR, kv_b_RHK.astype(latent_BTR.dtype))
    k_nope_BTHK, v_BTHV = jnp.split(kv_BTHK, [config.nope_dim], axis=-1)
    k_rope_BTHK = jnp.broadcast_to(k_rope_BTK[:, :, None], (*k_nope_BTHK.shape[:3], config.rope_dim))
    return jnp.concatenate([k_nope_BTHK, k_rope_BTHK], axis=-1), v_BTHV


def _absorbed(params, q_BTHK, cache: LayerCache, info: TokenInfo, config: ModelConfig):
    """Attention with `kv_b` absorbed into queries and outputs, [B, T, H, V]: all heads share one key and one value."""
    k_HRK, v_HVR = params["absorbed"] if "absorbed" in params else absorbed(params["kv_b"], config)
    q_nope, q_rope = jnp.split(q_BTHK, [config.nope_dim], axis=-1)
    q_BTHR = jnp.concatenate([jnp.einsum("BTHK,HRK->BTHR", q_nope, k_HRK.astype(q_nope.dtype)), q_rope], axis=-1)

    def read(cache, pages_Bn):
        k_BS1R = read_pages(cache, "latent", pages_Bn)[:, :, None]
        return k_BS1R, k_BS1R  # values without the rope keys would be a copy: what they add is cut off below

    last_BT, scale = info.last_visible, softmax_scale(config)
    if info.pages is None:
        k_BS1R = read_leaf(cache, "latent")[:, :, None]
        o_BTHR = cached_attention(q_BTHR, k_BS1R, k_BS1R[..., : config.kv_lora_rank], last_BT, scale)
    else:
        o_BTHR = pool_attention(q_BTHR, cache, CACHE_AXES, read, info.pages.table, last_BT, scale)[
            ..., : config.kv_lora_rank
        ]
    return jnp.einsum("BTHR,HVR->BTHV", o_BTHR, v_HVR.astype(o_BTHR.dtype))


def absorbed(kv_b_RHK: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """`kv_b` [R, H, nope + V] as the products of each head read it: (of keys [H, R, nope], of values [H, V, R])."""
    k_RHK, v_RHV = jnp.split(kv_b_RHK, [config.nope_dim], axis=2)
    return jnp.moveaxis(k_RHK, 1, 0), v_RHV.transpose(1, 2, 0)


def serve_mla(params: Params, config: ModelConfig) -> Params:
    """The weights of an MLA mixer as serving reads them: `kv_b` absorbed, so that they need a cache."""
    rest = {name: leaf for name, leaf in params.items() if name != "kv_b"}
    return join(rest, tuple(_down_sizes(config))) | {"absorbed": absorbed(params["kv_b"], config)}


def _down_sizes(config: ModelConfig) -> dict[str, int]:
    sizes = {"kv_a": latent_width(config)}
    return sizes if config.q_lora_rank is None else {"q_a": config.q_lora_rank} | sizes


def queries(params: Params, x_BTD: jax.Array, rope_table: RopeTable, config: ModelConfig) -> jax.Array:
    """Queries [B, T, H, nope + rope]; the rope dims are rotated in interleaved pairs."""
    dtype = x_BTD.dtype
    if config.q_lora_rank is None:
        q_BTHK = jnp.einsum("BTD,DHK->BTHK", x_BTD, params["q"].astype(dtype))
    else:
        q_BTR = project(params, x_BTD, _down_sizes(config))[0]
        if "q_a_bias" in params:
            q_BTR = q_BTR + params["q_a_bias"].astype(dtype)
        q_BTR = rms_norm(q_BTR, params["q_a_norm"], LATENT_NORM_EPS)
        q_BTHK = jnp.einsum("BTR,RHK->BTHK", q_BTR, params["q_b"].astype(dtype))
    q_nope, q_rope = jnp.split(q_BTHK, [config.nope_dim], axis=-1)
    return jnp.concatenate([q_nope, rotate_interleaved(q_rope, rope_table)], axis=-1)


def latents(
    params: Params, x_BTD: jax.Array, rope_table: RopeTable, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """(normed latents [B, T, R], rotated rope keys [B, T, rope]); all heads share both."""
    kv_BTR = project(params, x_BTD, _down_sizes(config))[-1]
    if "kv_a_bias" in params:
        kv_BTR = kv_BTR + params["kv_a_bias"].astype(x_BTD.dtype)
    latent_BTR, k_rope_BTK = jnp.split(kv_BTR, [config.kv_lora_rank], axis=-1)
    latent_BTR = rms_norm(latent_BTR, params["kv_a_norm"], LATENT_NORM_EPS)
    return latent_BTR, rotate_interleaved(k_rope_BTK[:, :, None], rope_table)[:, :, 0]


def mla_cache_spec(config: ModelConfig, sizes: CacheSizes) -> Spec:
    """The latent and the rope key of every token."""
    shape = (sizes.blocks, sizes.block_size, latent_width(config))
    return {"latent": Leaf(shape, CACHE_AXES["latent"], zeros, sizes.dtype)}


def mla_flops(config: ModelConfig, length: int) -> float:
    """Scores and values of causal attention: 3 · 2 · (T+1)/2 · H · (K + V)."""
    return 3 * (length + 1) * config.num_heads * (config.nope_dim + config.rope_dim + config.v_dim)


MLA = Mixer(mla_spec, mla, mla_cache_spec, mla_flops, serve=serve_mla)
