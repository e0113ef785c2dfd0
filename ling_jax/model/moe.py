"""Feed-forward layers: dense SwiGLU and the mixture of experts (docs/architecture.md §8)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ling_jax.config import ModelConfig
from ling_jax.model.joined import join, project
from ling_jax.parallel import experts
from ling_jax.parallel.sharding import num_shards, per_device
from ling_jax.spec import Leaf, Params, Spec, normal, zeros


class Router(NamedTuple):
    """The choices of one MoE layer's router, or of several layers stacked in front."""

    expert_index: jax.Array  # [B, T, k] int32, best first
    expert_weight: jax.Array  # [B, T, k], at least float32
    loads: jax.Array  # [E] int32 live tokens that chose each expert
    z_sum: jax.Array  # Σ over live tokens of logsumexp(router logits)²
    drops: jax.Array  # int32 (token, expert) pairs that were not computed; always 0


def swiglu_spec(config: ModelConfig, ffn_size: int) -> Spec:
    """Spec of a SwiGLU of the given width."""
    into = Leaf((config.hidden_size, ffn_size), ("embed", "ffn"), normal(config.init_std))
    return {
        "gate": into,
        "up": into,
        "down": Leaf((ffn_size, config.hidden_size), ("ffn", "embed"), normal(config.init_std)),
    }


def dense_spec(config: ModelConfig) -> Spec:
    """Spec of a dense feed-forward layer."""
    return swiglu_spec(config, config.ffn_size)


def moe_spec(config: ModelConfig) -> Spec:
    """Spec of a mixture of experts: router, expert bias, stacked experts and the shared expert."""
    c, init = config, normal(config.init_std)
    into = Leaf((c.num_experts, c.hidden_size, c.expert_ffn_size), ("experts", "embed", "ffn"), init, role="experts")
    out = Leaf((c.num_experts, c.expert_ffn_size, c.hidden_size), ("experts", "ffn", "embed"), init, role="experts")
    spec = {
        "router": Leaf((c.hidden_size, c.num_experts), ("embed", None), init, role="router"),
        "expert_bias": Leaf((c.num_experts,), (None,), zeros, trainable=False, role="router_bias"),
        "experts": {"gate": into, "up": into, "down": out},
    }
    return spec | ({"shared": swiglu_spec(c, c.shared_ffn_size)} if c.shared_ffn_size else {})


def swiglu(params: Params, x_BTD: jax.Array) -> jax.Array:
    """down(silu(gate x) · up x), [B, T, D]."""
    gate_BTF, up_BTF = project(params, x_BTD, dict.fromkeys(("gate", "up"), params["down"].shape[0]))
    return jnp.einsum("BTF,FD->BTD", jax.nn.silu(gate_BTF) * up_BTF, params["down"].astype(x_BTD.dtype))


def serve_swiglu(params: Params) -> Params:
    """The weights of a SwiGLU as serving reads them."""
    return join(params, ("gate", "up"))


def serve_moe(params: Params) -> Params:
    """The weights of a mixture of experts as serving reads them."""
    return params | ({"shared": serve_swiglu(params["shared"])} if "shared" in params else {})


def dense_ffn(
    params: Params, x_BTD: jax.Array, live_BT: jax.Array, config: ModelConfig, recorded_BTk: None = None
) -> tuple[jax.Array, None]:
    """The dense feed-forward layer with the signature of `moe`: (SwiGLU(x) [B, T, D], None)."""
    del live_BT, config, recorded_BTk
    return swiglu(params, x_BTD), None


def moe(
    params: Params, x_BTD: jax.Array, live_BT: jax.Array, config: ModelConfig, recorded_BTk: jax.Array | None = None
) -> tuple[jax.Array, Router]:
    """(Σ_e weight_e · SwiGLU_e(x) + shared SwiGLU(x) [B, T, D], Router). Loads and z count tokens in `live_BT` only.

    Tokens go to the experts in `recorded_BTk`, integers, where these are given (`route`).
    """
    with jax.named_scope("router"):
        logits_BTE = router_logits(params["router"], x_BTD)
        tokens = ((x_BTD.shape[0], "batch"), (x_BTD.shape[1], "tokens"))

        def choose(logits_BTE, bias_E, recorded_BTk):
            return route(logits_BTE, bias_E, config, recorded_BTk)

        # Per device: the compiler would gather all tokens for top_k.
        in_axes = (tokens, (), None if recorded_BTk is None else tokens)
        choose = per_device(choose, in_axes, (tokens, tokens))
        index_BTk, weight_BTk = choose(logits_BTE, params["expert_bias"], recorded_BTk)
    with jax.named_scope("experts"):
        matrices = experts.Experts(*(params["experts"][name] for name in experts.Experts._fields))
        choices = weight_BTk.astype(x_BTD.dtype), index_BTk, live_BT
        max_devices = max_devices_per_token(config, num_shards("experts"))
        y_BTD, drops = experts.expert_parallel(x_BTD, *choices, matrices, max_devices)
    if "shared" in params:
        with jax.named_scope("shared_expert"):
            y_BTD = y_BTD + swiglu(params["shared"], x_BTD)
    z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
    chosen_BTE = jax.nn.one_hot(index_BTk, config.num_experts, dtype=jnp.int32).sum(axis=2)
    loads = jnp.sum(jnp.where(live_BT[..., None], chosen_BTE, 0), axis=(0, 1))
    return y_BTD, Router(index_BTk, weight_BTk, loads, jnp.sum(jnp.where(live_BT, z_BT, 0)), drops)


def router_logits(weight_DE: jax.Array, x_BTD: jax.Array) -> jax.Array:
    """[B, T, E] in at least float32, at full precision: an accelerator's default would round products to bfloat16."""
    dtype = jnp.promote_types(x_BTD.dtype, jnp.float32)
    return jnp.einsum("BTD,DE->BTE", x_BTD.astype(dtype), weight_DE.astype(dtype), precision=jax.lax.Precision.HIGHEST)


def route(
    logits_BTE: jax.Array, expert_bias_E: jax.Array, config: ModelConfig, recorded_BTk: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(expert_index, expert_weight), both [B, T, k]. The bias affects the choice only; it has no gradient.

    `recorded_BTk` replaces the choice of the tokens that have no -1 there. The weights are this router's own scores at
    the recorded experts.
    """
    score_BTE = jax.nn.sigmoid(logits_BTE)
    biased_BTE = jax.lax.stop_gradient(score_BTE + expert_bias_E.astype(score_BTE.dtype))
    _, index_BTk = jax.lax.top_k(_keep_best_groups(biased_BTE, config), config.top_k)
    if recorded_BTk is not None:
        has_record_BT1 = jnp.all(recorded_BTk >= 0, axis=-1, keepdims=True)
        index_BTk = jnp.where(has_record_BT1, recorded_BTk.astype(index_BTk.dtype), index_BTk)
    weight_BTk = jnp.take_along_axis(score_BTE, index_BTk, axis=-1)
    if config.top_k > 1:
        weight_BTk = weight_BTk / (weight_BTk.sum(axis=-1, keepdims=True) + 1e-20)
    return index_BTk, weight_BTk * config.routed_scale


def max_devices_per_token(config: ModelConfig, devices: int) -> int:
    """Upper bound on the devices that hold one token's experts, of `devices` that share all experts.

    The experts of a group are neighbours, and a token uses `top_groups` groups.
    """
    of_group, of_device = config.num_experts // config.num_expert_groups, config.num_experts // devices
    firsts = range(0, config.num_experts, of_group)
    spans = max((first + of_group - 1) // of_device - first // of_device + 1 for first in firsts)
    return min(devices, config.top_k, config.top_groups * spans)


def _keep_best_groups(biased_BTE, config: ModelConfig):
    """Scores with -inf outside the `top_groups` groups with the largest sum of their two best scores."""
    if config.top_groups == config.num_expert_groups:
        return biased_BTE
    grouped = biased_BTE.reshape(*biased_BTE.shape[:-1], config.num_expert_groups, -1)
    best_two, _ = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))
    _, kept = jax.lax.top_k(best_two.sum(axis=-1), config.top_groups)
    keep = jax.nn.one_hot(kept, config.num_expert_groups, dtype=bool).any(axis=-2)
    return jnp.where(keep[..., None], grouped, -jnp.inf).reshape(biased_BTE.shape)
