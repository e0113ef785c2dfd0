"""Feed-forward layers: dense SwiGLU and the mixture of experts (docs/architecture.md §8)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ling_jax.config import ModelConfig
from ling_jax.parallel import experts
from ling_jax.parallel.sharding import per_device, ways
from ling_jax.spec import Leaf, Spec, normal, zeros


class Router(NamedTuple):
    """What the router did: per MoE layer, or stacked over layers in front."""

    expert_index: jax.Array  # [B, T, k], best first
    expert_weight: jax.Array  # [B, T, k]
    loads: jax.Array  # [E] live tokens sent to each expert, int32
    z_sum: jax.Array  # Σ over live tokens of logsumexp(router logits)²
    drops: jax.Array  # (token, expert) pairs that were not computed: 0


def swiglu_spec(config: ModelConfig, ffn_size: int) -> Spec:
    into = Leaf((config.hidden_size, ffn_size), ("embed", "ffn"), normal(config.init_std))
    return {
        "gate": into,
        "up": into,
        "down": Leaf((ffn_size, config.hidden_size), ("ffn", "embed"), normal(config.init_std)),
    }


def moe_spec(config: ModelConfig) -> Spec:
    c, init = config, normal(config.init_std)
    into = Leaf((c.num_experts, c.hidden_size, c.expert_ffn_size), ("experts", "embed", "ffn"), init)
    out = Leaf((c.num_experts, c.expert_ffn_size, c.hidden_size), ("experts", "ffn", "embed"), init)
    spec = {
        "router": Leaf((c.hidden_size, c.num_experts), ("embed", None), init),
        "expert_bias": Leaf((c.num_experts,), (None,), zeros, trainable=False),
        "experts": {"gate": into, "up": into, "down": out},
    }
    return spec | ({"shared": swiglu_spec(c, c.shared_ffn_size)} if c.shared_ffn_size else {})


def swiglu(params, x_BTD):
    """down(silu(gate x) · up x)."""
    gate_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, params["gate"].astype(x_BTD.dtype))
    up_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, params["up"].astype(x_BTD.dtype))
    return jnp.einsum("BTF,FD->BTD", jax.nn.silu(gate_BTF) * up_BTF, params["down"].astype(x_BTD.dtype))


def dense_ffn(params, x_BTD, live_BT, config: ModelConfig):
    """(SwiGLU of the layer, no router)."""
    del live_BT, config
    return swiglu(params, x_BTD), None


def moe(params, x_BTD, live_BT, config: ModelConfig):
    """(Σ weight_e · SwiGLU_e(x) + shared SwiGLU(x) [B, T, D], Router); `live_BT` marks what loads count."""
    with jax.named_scope("router"):
        logits_BTE = router_logits(params["router"], x_BTD)
        tokens = ((x_BTD.shape[0], "batch"), (x_BTD.shape[1], "tokens"))
        choose = per_device(functools.partial(route, config=config), (tokens, ()), (tokens, tokens))
        index_BTk, weight_BTk = choose(logits_BTE, params["expert_bias"])  # the compiler would gather them to sort them
    with jax.named_scope("experts"):
        matrices = experts.Experts(*(params["experts"][name] for name in experts.Experts._fields))
        choices = weight_BTk.astype(x_BTD.dtype), index_BTk, live_BT
        most = devices_of_a_token(config, ways("experts"))
        y_BTD, drops = experts.expert_parallel(x_BTD, *choices, matrices, most)
    if "shared" in params:
        with jax.named_scope("shared_expert"):
            y_BTD = y_BTD + swiglu(params["shared"], x_BTD)
    z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
    chosen_BTE = jax.nn.one_hot(index_BTk, config.num_experts, dtype=jnp.int32).sum(axis=2)
    loads = jnp.sum(jnp.where(live_BT[..., None], chosen_BTE, 0), axis=(0, 1))
    return y_BTD, Router(index_BTk, weight_BTk, loads, jnp.sum(jnp.where(live_BT, z_BT, 0)), drops)


def router_logits(weight_DE, x_BTD):
    """[B, T, E] in at least float32, the products too (an accelerator's default would round them to bfloat16)."""
    dtype = jnp.promote_types(x_BTD.dtype, jnp.float32)
    return jnp.einsum("BTD,DE->BTE", x_BTD.astype(dtype), weight_DE.astype(dtype), precision=jax.lax.Precision.HIGHEST)


def route(logits_BTE, expert_bias_E, config: ModelConfig):
    """(expert_index, expert_weight), both [B, T, k]. The bias chooses and does not weigh; it has no gradient."""
    score_BTE = jax.nn.sigmoid(logits_BTE)
    biased_BTE = jax.lax.stop_gradient(score_BTE + expert_bias_E.astype(score_BTE.dtype))
    _, index_BTk = jax.lax.top_k(_keep_best_groups(biased_BTE, config), config.top_k)
    weight_BTk = jnp.take_along_axis(score_BTE, index_BTk, axis=-1)
    if config.top_k > 1:
        weight_BTk = weight_BTk / (weight_BTk.sum(axis=-1, keepdims=True) + 1e-20)
    return index_BTk, weight_BTk * config.routed_scale


def devices_of_a_token(config: ModelConfig, devices: int) -> int:
    """On how many of the `devices` that share the experts those of one token lie at the most: groups lie together."""
    of_group, of_device = config.num_experts // config.num_expert_groups, config.num_experts // devices
    firsts = range(0, config.num_experts, of_group)
    spans = max((first + of_group - 1) // of_device - first // of_device + 1 for first in firsts)
    return min(devices, config.top_k, config.top_groups * spans)


def _keep_best_groups(biased_BTE, config: ModelConfig):
    """-inf outside the groups whose two best experts together score highest."""
    if config.top_groups == config.num_expert_groups:
        return biased_BTE
    grouped = biased_BTE.reshape(*biased_BTE.shape[:-1], config.num_expert_groups, -1)
    best_two, _ = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))
    _, kept = jax.lax.top_k(best_two.sum(axis=-1), config.top_groups)
    keep = jax.nn.one_hot(kept, config.num_expert_groups, dtype=bool).any(axis=-2)
    return jnp.where(keep[..., None], grouped, -jnp.inf).reshape(biased_BTE.shape)
