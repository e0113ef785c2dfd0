"""Lightning attention layers (docs/architecture.md §5)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ling_jax.config import ModelConfig
from ling_jax.model.gqa import finish_qkv, out_spec, project_out, qkv_spec
from ling_jax.model.joined import join, project
from ling_jax.model.layer_cache import LayerCache, leaf_axes, read_leaf, write_state
from ling_jax.model.mixer import CacheSizes, Mixer
from ling_jax.model.norm import group_rms_norm, rms_norm
from ling_jax.model.rope import RopeTable, rotate_half
from ling_jax.model.token_info import PAST_END, Pages, TokenInfo
from ling_jax.parallel.sharding import RULES, per_device, shard_size
from ling_jax.spec import Leaf, Params, Spec, normal, ones, zeros
from pallas_kernels.lightning_attention import (
    Norms,
    lightning_attention,
    lightning_decode_gpu,
    lightning_decode_tpu,
    lightning_layer_tpu,
    suits_decode,
    suits_decode_gpu,
    suits_layer,
)  # fmt: skip
from pallas_kernels.lightning_attention.context import entering_state, local_state
from pallas_kernels.platform import platform

HEADS = ("q", "k", "v", "gate")  # matrices of the layer's input
ENTERING = "entering_state"  # by this name `remat` saves the state that enters a rank
CACHE_AXES = {"state": ("batch", "heads", None, None)}


def lightning_spec(config: ModelConfig) -> Spec:
    """Spec of a Lightning mixer."""
    c = config
    return (
        qkv_spec(c, c.num_heads, qk_norm=c.qk_norm)
        | out_spec(c, c.head_dim, c.out_bias)
        | {
            "gate": Leaf((c.hidden_size, c.num_heads, c.head_dim), ("embed", "heads", None), normal(c.init_std)),
            "norm": Leaf((c.num_heads, c.head_dim), ("heads", None), ones, role="norm"),
        }
    )


def base_slopes(num_heads: int) -> np.ndarray:
    """[H] float64 slopes 2^(-8h/H), h = 1 … H.

    If H is no power of two: the slopes of the largest power of two P below H, then every other slope of 2P.
    """
    power = 2 ** int(math.log2(num_heads))

    def geometric(count: int) -> np.ndarray:
        return 2.0 ** (-8.0 / count * np.arange(1, count + 1))

    return np.concatenate([geometric(power), geometric(2 * power)[0::2][: num_heads - power]])


def log_decays(config: ModelConfig) -> np.ndarray:
    """[L, H] float64 log decays, negative, of every layer; only Lightning layers use theirs.

    log_decay = -slope_h · (1 - (layer + slope_layer_offset) / (L - 1) + 1e-5); L does not count MTP layers.
    """
    layers = np.arange(config.num_layers) + config.slope_layer_offset
    factor = 1.0 - layers / max(config.num_layers - 1, 1) + 1e-5
    return -factor[:, None] * base_slopes(config.num_heads)


DECODES = {"tpu": (lightning_decode_tpu, suits_decode), "gpu": (lightning_decode_gpu, suits_decode_gpu)}


def lightning(
    params: Params,
    x_BTD: jax.Array,
    info: TokenInfo,
    cache: LayerCache | None,
    config: ModelConfig,
) -> tuple[jax.Array, LayerCache | None]:
    """Lightning attention of the layer's normed input x [B, T, D]: (y [B, T, D], the cache with the new state or None).

    With a cache, few tokens and heads that suit it, the platform's decode kernel runs. Otherwise `lightning_tpu` runs
    on TPUs where the shapes suit it, and `lightning_xla` everywhere else.
    """
    if info.pages is not None:
        return lightning_paged(params, x_BTD, info, cache, config)
    decode, suits = DECODES.get(platform(), (None, None))
    if cache is not None and decode and suits(x_BTD.shape[1], config.head_dim, config.head_dim):
        return lightning_decode(params, x_BTD, info, cache, config, decode)
    state_BHKV = None if cache is None else read_leaf(cache, "state")
    form = lightning_xla if info.rotation is None else lightning_tpu
    y_BTD, state_BHKV = form(params, x_BTD, info, state_BHKV, config)
    return y_BTD, None if cache is None else write_state(cache, "state", state_BHKV)


def lightning_xla(
    params: Params,
    x_BTD: jax.Array,
    info: TokenInfo,
    state_BHKV: jax.Array | None,
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array]:
    """The layer in jax.numpy around the attention kernel: (y [B, T, D], final state [B, H, K, V]).

    If the mesh splits rows, the final state is each rank's own and means nothing.
    """
    q_BTHK, k_BTHK, v_BTHV, gate_BTHV = project_heads(params, x_BTD, info.rope, config)
    rows, heads = (x_BTD.shape[0], "batch"), (config.num_heads, "heads")
    tokens, state = (rows, (x_BTD.shape[1], "tokens"), heads), (rows, heads)

    def attend(q, k, v, log_decay, state, docs, between):
        if between is not None:
            state = state_from_earlier_ranks(k, v, log_decay, docs, between)
        return lightning_attention(
            q, k, v, log_decay, initial_state=state, segment_ids=docs, chunk_size=config.lightning_chunk
        )

    between_BRS = None if info.split is None else info.split.between
    in_axes = (
        *(tokens,) * 3, (heads,), None if state_BHKV is None else state, None if info.docs is None else tokens[:2],
        None if between_BRS is None else (rows, (between_BRS.shape[1], "tokens")),
    )  # fmt: skip
    o_BTHV, state_BHKV = per_device(attend, in_axes, (tokens, state))(
        q_BTHK, k_BTHK, v_BTHV, params["log_decay"], state_BHKV, info.docs, between_BRS
    )
    return gated_output(params, o_BTHV, gate_BTHV, config), state_BHKV


def project_heads(params: Params, x_BTD: jax.Array, rope_table: RopeTable, config: ModelConfig) -> list[jax.Array]:
    """[q, k, v, gate], each [B, T, H, K], of the layer's normed input x: q, k and v as attention takes them."""
    *qkv, gate_BTHV = project(params, x_BTD, dict.fromkeys(HEADS, config.num_heads))
    return [*finish_qkv(params, qkv, rope_table, config), gate_BTHV]


def state_from_earlier_ranks(
    k_BTHK: jax.Array, v_BTHV: jax.Array, log_decay_H: jax.Array, docs_BT: jax.Array, between_B1R: jax.Array
) -> jax.Array:
    """The state that enters this rank, [B, H, K, V] in at least float32: a sum over the ranks before it.

    Forward has one all-gather of local states, backward one reduce-scatter of their gradients. `remat` saves the
    result (`ENTERING`).
    """
    state_BHKV = local_state(k_BTHK, v_BTHV, log_decay_H, docs_BT)
    state_RBHKV = jax.lax.all_gather(state_BHKV, RULES["tokens"])
    return checkpoint_name(entering_state(state_RBHKV, between_B1R[:, 0], log_decay_H), ENTERING)


def uses_layer_kernel(shape_BT: tuple[int, int], config: ModelConfig) -> bool:
    """Whether `lightning_tpu` runs for tokens of this shape on the platform that the program is traced for."""
    c, (batch, length) = (
        config,
        (shard_size(size, axis) for size, axis in zip(shape_BT, ("batch", "tokens"), strict=True)),
    )
    if platform() != "tpu" or not c.qk_norm:
        return False
    heads, grouped, dim = shard_size(c.num_heads, "heads"), c.num_heads // c.num_norm_groups, c.head_dim
    whole_groups = heads % grouped == 0
    return whole_groups and suits_layer(c.compute_dtype, batch, length, heads, heads // grouped, dim, dim)


def lightning_tpu(
    params: Params,
    x_BTD: jax.Array,
    info: TokenInfo,
    state_BHKV: jax.Array | None,
    config: ModelConfig,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`lightning_xla` with one TPU kernel between the projections; q, k, v and gate stay flat, [B, T, H·K]."""
    c, (batch, length, _) = config, x_BTD.shape
    rows, heads = (batch, "batch"), (c.num_heads, "heads")
    tokens = (rows, (length, "tokens"), heads)  # [B, T, H·K]: whole heads
    shared = ((1, None) if info.rotation[0].shape[0] == 1 else rows, tokens[1])
    state = (rows, heads)
    between_BRS = None if info.split is None else info.split.between
    norms = Norms(params["q_norm"], params["k_norm"], params["norm"])

    def layer(q, k, v, gate, q_norm, k_norm, norm, cos, sin, log_decay, state, docs, between, rope):
        if between is not None:
            k_BTHK, v_BTHV = (x.reshape(*x.shape[:2], len(log_decay), -1) for x in (k, v))
            k_BTHK = rotate_half(rms_norm(k_BTHK, k_norm, c.norm_eps), rope)
            state = state_from_earlier_ranks(k_BTHK, v_BTHV, log_decay, docs, between)
        return lightning_layer_tpu(
            q, k, v, gate, Norms(q_norm, k_norm, norm), (cos, sin), log_decay, state, docs,
            num_heads=norm.shape[0], num_groups=norm.shape[0] * c.num_norm_groups // c.num_heads,
            half=c.rotary_dim // 2, eps=c.norm_eps, interpret=interpret,
        )  # fmt: skip

    in_axes = (
        *(tokens,) * 4, (), (), (heads,), shared, shared, (heads,),
        None if state_BHKV is None else state, None if info.docs is None else tokens[:2],
        None if between_BRS is None else (rows, (between_BRS.shape[1], "tokens")), shared,
    )  # fmt: skip
    projected = (_flat_projection(params, name, x_BTD) for name in ("q", "k", "v", "gate"))
    o_BTX, state_BHKV = per_device(layer, in_axes, (tokens, state))(
        *projected, *norms, *info.rotation, params["log_decay"], state_BHKV, info.docs, between_BRS, info.rope
    )
    y_BTD = o_BTX @ params["out"].astype(o_BTX.dtype).reshape(o_BTX.shape[-1], -1)
    return y_BTD + params["out_bias"].astype(y_BTD.dtype) if "out_bias" in params else y_BTD, state_BHKV


def lightning_decode(
    params: Params,
    x_BTD: jax.Array,
    info: TokenInfo,
    cache: LayerCache,
    config: ModelConfig,
    decode: Callable[..., Any],
) -> tuple[jax.Array, LayerCache]:
    """The layer for 1 to 8 tokens: (y [B, T, D], the cache with the new state).

    The kernel `decode` updates the stacked states in place.
    """
    batch, length, _ = x_BTD.shape
    states = cache.leaves["state"]
    rows, heads = (batch, "batch"), (config.num_heads, "heads")
    tokens, stacked = (rows, (length, None), heads), ((1, None), (1, None), rows, heads)
    live = None if info.docs is None else (info.docs > 0).astype(jnp.int32)

    def step(q, k, v, log_decay, states, repeat, number, live):
        return decode(q, k, v, log_decay, states, (repeat, number), live, num_heads=log_decay.shape[0])

    in_axes = (*(tokens,) * 3, (heads,), stacked, (), (), None if live is None else (rows,))
    *qkv, gate_BTHV = project_heads(params, x_BTD, info.rope, config)
    qkv = (x_BTHK.reshape(batch, length, -1) for x_BTHK in qkv)
    place = map(jnp.int32, cache.position)
    o_BTX, states = per_device(step, in_axes, (tokens, stacked))(*qkv, params["log_decay"], states, *place, live)
    o_BTHV = o_BTX.reshape(batch, length, config.num_heads, -1)
    return gated_output(params, o_BTHV, gate_BTHV, config), cache._replace(leaves=cache.leaves | {"state": states})


def lightning_paged(
    params: Params, x_BTD: jax.Array, info: TokenInfo, cache: LayerCache, config: ModelConfig
) -> tuple[jax.Array, LayerCache]:
    """The layer for rows whose states lie in `info.pages.state`: (y [B, T, D], the cache with the new states).

    Rows of one token go by the one-step recurrence, and those of one sequence, which are neighbours, hand the state on.
    Padding (`info.live`) leaves the states as they are.
    """
    form = _read_and_write if x_BTD.shape[1] > 1 else _one_step
    y_BTD, states = form(params, x_BTD, info, cache, config)
    return y_BTD, cache._replace(leaves=cache.leaves | {"state": states})


def _read_and_write(params, x_BTD, info: TokenInfo, cache: LayerCache, config: ModelConfig):
    """Many tokens of each sequence: (y [B, T, D], the stacked states)."""
    stacked = leaf_axes(cache, "state", CACHE_AXES)
    rows, heads = (x_BTD.shape[0], "batch"), (config.num_heads, "heads")

    def read(states, repeat, number, state_B, fresh_B):
        return (_states_of_rows(states, (repeat, number), state_B, fresh_B),)

    def write(states, repeat, number, state_B, live_BT, state_BHKV):
        place_B = jnp.where(live_BT.any(axis=1), state_B, PAST_END)
        return (states.at[repeat, number, place_B].set(state_BHKV.astype(states.dtype), mode="drop"),)

    states, pages = (cache.leaves["state"], *cache.position), info.pages
    reading = per_device(read, (stacked, (), (), (rows,), (rows,)), ((rows, heads),))
    (state_BHKV,) = reading(*states, pages.state, pages.fresh)
    form = lightning_xla if info.rotation is None else lightning_tpu
    y_BTD, state_BHKV = form(params, x_BTD, info, state_BHKV, config)
    writing = per_device(write, (stacked, (), (), (rows,), (rows,), (rows, heads)), (stacked,))
    return y_BTD, writing(*states, pages.state, info.live, state_BHKV)[0]


def _one_step(params, x_BTD, info: TokenInfo, cache: LayerCache, config: ModelConfig):
    """One token of each row: (y [B, 1, D], the stacked states). Each device has its own rows, states and heads."""
    stacked = leaf_axes(cache, "state", CACHE_AXES)
    rows, heads = (x_BTD.shape[0], "batch"), (config.num_heads, "heads")

    def step(q_BHK, k_BHK, v_BHV, log_decay_H, states, repeat, number, state_B, fresh_B, distinct_D, live_BT):
        of_part = info._replace(pages=Pages(None, state_B, fresh_B, distinct_D.reshape(())))
        state_BHKV = _states_of_rows(states, (repeat, number), state_B, fresh_B)
        o_BHV, state_BHKV, last_B = recurrence_of_rows(q_BHK, k_BHK, v_BHV, log_decay_H, state_BHKV, of_part)
        place_B = jnp.where(last_B & live_BT.any(axis=1), state_B, PAST_END)
        return o_BHV, states.at[repeat, number, place_B].set(state_BHKV.astype(states.dtype), mode="drop")

    *qkv, gate_BTHV = project_heads(params, x_BTD, info.rope, config)
    qkv, pages = (x_BTHK[:, 0] for x_BTHK in qkv), info.pages
    distinct = () if pages.distinct.ndim == 0 else ((len(pages.distinct), "batch"),)
    in_axes = (*((rows, heads),) * 3, (heads,), stacked, (), (), (rows,), (rows,), distinct, (rows,))
    o_BHV, states = per_device(step, in_axes, ((rows, heads), stacked))(
        *qkv, params["log_decay"], cache.leaves["state"], *cache.position,
        pages.state, pages.fresh, pages.distinct, info.live,
    )  # fmt: skip
    return gated_output(params, o_BHV[:, None], gate_BTHV, config), states


def _states_of_rows(states, position, state_B, fresh_B):
    """[B, H, K, V] states before the rows' tokens: zero where a sequence begins; of padding any."""
    found_BHKV = states.at[*position, state_B].get(mode="clip")
    return jnp.where(fresh_B[:, None, None, None], 0, found_BHKV)


def recurrence_of_rows(
    q_BHK: jax.Array, k_BHK: jax.Array, v_BHV: jax.Array, log_decay_H: jax.Array, state_BHKV: jax.Array, info: TokenInfo
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(out [B, H, V], states behind the rows' tokens [B, H, K, V], [B] bool: the last row of its sequence).

    A row behind one of the same sequence takes the state from it. The two branches give the same bits on a CPU.
    """
    pages, wide = info.pages, state_BHKV.dtype
    same_B = jnp.pad(pages.state[1:] == pages.state[:-1], (1, 0))
    decay_H11 = jnp.exp(log_decay_H.astype(wide))[:, None, None]

    def step(state_BHKV, q_BHK, k_BHK, v_BHV):
        update_BHKV = k_BHK.astype(wide)[..., None] * v_BHV.astype(wide)[..., None, :]
        state_BHKV = decay_H11 * state_BHKV + update_BHKV
        out_BHV = jnp.einsum("BHK,BHKV->BHV", q_BHK.astype(wide), state_BHKV) * q_BHK.shape[-1] ** -0.5
        return out_BHV.astype(v_BHV.dtype), state_BHKV

    def together():
        return step(state_BHKV, q_BHK, k_BHK, v_BHV)

    def in_order():
        def row(before_1HKV, inputs):
            *qkv, state_HKV, same = inputs
            state_1HKV = jnp.where(same, before_1HKV, state_HKV[None])
            out_1HV, state_1HKV = step(state_1HKV, *(x[None] for x in qkv))
            return state_1HKV, (out_1HV[0], state_1HKV[0])

        return jax.lax.scan(row, jnp.zeros_like(state_BHKV[:1]), (q_BHK, k_BHK, v_BHV, state_BHKV, same_B))[1]

    # A branch also for a single row: else its state is computed in its place, and all states are copied to be read.
    distinct = pages.distinct & (pages.state[0] >= 0)
    out_BHV, state_BHKV = jax.lax.cond(distinct, together, in_order)
    return out_BHV, state_BHKV, ~jnp.append(same_B[1:], False)


def _flat_projection(params, name: str, x_BTD):
    y_BTX = x_BTD @ params[name].astype(x_BTD.dtype).reshape(x_BTD.shape[-1], -1)
    bias = params.get(f"{name}_bias")
    return y_BTX if bias is None else y_BTX + bias.astype(x_BTD.dtype).reshape(-1)


def gated_output(params: Params, o_BTHV: jax.Array, gate_BTHV: jax.Array, config: ModelConfig) -> jax.Array:
    """Group norm, sigmoid gate and output projection, [B, T, D] (docs/architecture.md §5, steps 4-6)."""
    o_BTHV = group_rms_norm(o_BTHV, params["norm"], config.num_norm_groups, config.norm_eps)
    return project_out(params, o_BTHV * jax.nn.sigmoid(gate_BTHV))


def serve_lightning(params: Params, config: ModelConfig) -> Params:
    """The weights of a Lightning mixer as serving reads them."""
    del config
    return join(params, HEADS)


def lightning_cache_spec(config: ModelConfig, sizes: CacheSizes) -> Spec:
    """One state for each sequence, in at least float32."""
    shape = (sizes.sequences, config.num_heads, config.head_dim, config.head_dim)
    return {"state": Leaf(shape, CACHE_AXES["state"], zeros, jnp.promote_types(sizes.dtype, jnp.float32))}


def lightning_flops(config: ModelConfig, length: int) -> float:
    """The recurrent form: 3 · 4 · H · K²."""
    del length
    return 12 * config.num_heads * config.head_dim**2


def lightning_constants(config: ModelConfig) -> dict[str, np.ndarray]:
    """{"log_decay": [L, H]}."""
    return {"log_decay": log_decays(config)}


LIGHTNING = Mixer(
    lightning_spec, lightning, lightning_cache_spec, lightning_flops, lightning_constants, serve_lightning
)
