"""Lightning attention layers (docs/architecture.md §5)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ling_jax.config import ModelConfig
from ling_jax.model.gqa import out_spec, project_out, project_qkv, qkv_spec
from ling_jax.model.layer_cache import put_state, read
from ling_jax.model.norm import group_rms_norm, rms_norm
from ling_jax.model.rope import rotate_half
from ling_jax.parallel.sharding import RULES, local, per_device
from ling_jax.spec import Leaf, Spec, normal, ones
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

ENTERING = "entering_state"  # the name under which remat keeps it


def lightning_spec(config: ModelConfig) -> Spec:
    c = config
    return (
        qkv_spec(c, c.num_heads, qk_norm=c.qk_norm)
        | out_spec(c, c.head_dim, c.out_bias)
        | {
            "gate": Leaf((c.hidden_size, c.num_heads, c.head_dim), ("embed", "heads", None), normal(c.init_std)),
            "norm": Leaf((c.num_heads, c.head_dim), ("heads", None), ones),
        }
    )


def base_slopes(num_heads: int) -> np.ndarray:
    """[H] float64: 2^(-8h/H), h = 1..H; other counts than powers of two take every other slope of the next power."""
    power = 2 ** int(math.log2(num_heads))
    geometric = lambda count: 2.0 ** (-8.0 / count * np.arange(1, count + 1))  # noqa: E731
    return np.concatenate([geometric(power), geometric(2 * power)[0::2][: num_heads - power]])


def log_decays(config: ModelConfig) -> np.ndarray:
    """[L, H] float64 log decay of every layer, negative; only Lightning layers use theirs.

    log_decay = -slope_h · (1 - (layer + slope_layer_offset) / (L - 1) + 1e-5), MTP layers not counted in L.
    """
    layers = np.arange(config.num_layers) + config.slope_layer_offset
    factor = 1.0 - layers / max(config.num_layers - 1, 1) + 1e-5
    return -factor[:, None] * base_slopes(config.num_heads)


DECODES = {"tpu": (lightning_decode_tpu, suits_decode), "gpu": (lightning_decode_gpu, suits_decode_gpu)}


def lightning(params, x_BTD, sequence, log_decay_H, cache, config: ModelConfig):
    """(gated linear attention, the cache with the new state); x is the layer's normed input, which also makes the
    gate."""
    decode, suits = DECODES.get(platform(), (None, None))
    if cache is not None and decode and suits(x_BTD.shape[1], config.head_dim, config.head_dim):
        return decode_form(params, x_BTD, sequence, log_decay_H, cache, config, decode)
    state_BHKV = None if cache is None else read(cache, "state")
    form = plain_form if sequence.rotation is None else kernel_form
    y_BTD, state_BHKV = form(params, x_BTD, sequence, log_decay_H, state_BHKV, config)
    return y_BTD, None if cache is None else put_state(cache, "state", state_BHKV)


def plain_form(params, x_BTD, sequence, log_decay_H, state_BHKV, config: ModelConfig):
    """(the layer's output, the new state), as jax.numpy has it; where rows are split, that state means nothing."""
    q_BTHK, k_BTHK, v_BTHV = project_qkv(params, x_BTD, sequence.rope, config)
    rows, heads = (x_BTD.shape[0], "batch"), (config.num_heads, "heads")
    tokens, state = (rows, (x_BTD.shape[1], "tokens"), heads), (rows, heads)

    def attend(q, k, v, log_decay, state, docs, between):
        if between is not None:
            state = entering(k, v, log_decay, docs, between)
        return lightning_attention(
            q, k, v, log_decay, initial_state=state, segment_ids=docs, chunk_size=config.lightning_chunk
        )

    between_BRS = None if sequence.split is None else sequence.split.between
    in_axes = (
        *(tokens,) * 3, (heads,), None if state_BHKV is None else state, None if sequence.docs is None else tokens[:2],
        None if between_BRS is None else (rows, (between_BRS.shape[1], "tokens")),
    )  # fmt: skip
    o_BTHV, state_BHKV = per_device(attend, in_axes, (tokens, state))(
        q_BTHK, k_BTHK, v_BTHV, log_decay_H, state_BHKV, sequence.docs, between_BRS
    )
    return gated_output(params, o_BTHV, x_BTD, config), state_BHKV


def entering(k_BTHK, v_BTHV, log_decay_H, docs_BT, between_B1R):
    """[B, H, K, V]: the state that this device's tokens begin with, of the ranks before it: one gather of a state each.

    It has a name by which remat keeps it, and backward scatters its gradient once.
    """
    state_BHKV = local_state(k_BTHK, v_BTHV, log_decay_H, docs_BT)
    state_RBHKV = jax.lax.all_gather(state_BHKV, RULES["tokens"])
    return checkpoint_name(entering_state(state_RBHKV, between_B1R[:, 0], log_decay_H), ENTERING)


def uses_kernels(shape_BT: tuple[int, int], config: ModelConfig) -> bool:
    """Whether `kernel_form` is the one for tokens of this shape, on the devices that the program is traced for."""
    c, (batch, length) = config, (local(size, axis) for size, axis in zip(shape_BT, ("batch", "tokens"), strict=True))
    if platform() != "tpu" or not c.qk_norm:
        return False
    heads, grouped, dim = local(c.num_heads, "heads"), c.num_heads // c.num_norm_groups, c.head_dim
    whole_groups = heads % grouped == 0
    return whole_groups and suits_layer(c.compute_dtype, batch, length, heads, heads // grouped, dim, dim)


def kernel_form(params, x_BTD, sequence, log_decay_H, state_BHKV, config: ModelConfig, interpret: bool = False):
    """The same with one kernel between the projections; heads stay side by side, as projections make them."""
    c, (batch, length, _) = config, x_BTD.shape
    rows, heads = (batch, "batch"), (c.num_heads, "heads")
    tokens = (rows, (length, "tokens"), heads)  # [B, T, H·K]: whole heads
    shared = ((1, None) if sequence.rotation[0].shape[0] == 1 else rows, tokens[1])
    state = (rows, heads)
    between_BRS = None if sequence.split is None else sequence.split.between
    norms = Norms(params["q_norm"], params["k_norm"], params["norm"])

    def layer(q, k, v, gate, q_norm, k_norm, norm, cos, sin, log_decay, state, docs, between, rope):
        if between is not None:
            k_BTHK, v_BTHV = (x.reshape(*x.shape[:2], len(log_decay), -1) for x in (k, v))
            k_BTHK = rotate_half(rms_norm(k_BTHK, k_norm, c.norm_eps), rope)
            state = entering(k_BTHK, v_BTHV, log_decay, docs, between)
        return lightning_layer_tpu(
            q, k, v, gate, Norms(q_norm, k_norm, norm), (cos, sin), log_decay, state, docs,
            num_heads=norm.shape[0], num_groups=norm.shape[0] * c.num_norm_groups // c.num_heads,
            half=c.rotary_dim // 2, eps=c.norm_eps, interpret=interpret,
        )  # fmt: skip

    in_axes = (
        *(tokens,) * 4, (), (), (heads,), shared, shared, (heads,),
        None if state_BHKV is None else state, None if sequence.docs is None else tokens[:2],
        None if between_BRS is None else (rows, (between_BRS.shape[1], "tokens")), shared,
    )  # fmt: skip
    projected = (_flat_projection(params, name, x_BTD) for name in ("q", "k", "v", "gate"))
    o_BTX, state_BHKV = per_device(layer, in_axes, (tokens, state))(
        *projected, *norms, *sequence.rotation, log_decay_H, state_BHKV, sequence.docs, between_BRS, sequence.rope
    )
    y_BTD = o_BTX @ params["out"].astype(o_BTX.dtype).reshape(o_BTX.shape[-1], -1)
    return y_BTD + params["out_bias"].astype(y_BTD.dtype) if "out_bias" in params else y_BTD, state_BHKV


def decode_form(params, x_BTD, sequence, log_decay_H, cache, config: ModelConfig, decode):
    """(the layer's output, the cache with the new state) for a few tokens: the kernel `decode` updates the stacked
    states in place."""
    batch, length, _ = x_BTD.shape
    states = cache.leaves["state"]
    rows, heads = (batch, "batch"), (config.num_heads, "heads")
    tokens, stacked = (rows, (length, None), heads), ((1, None), (1, None), rows, heads)
    live = None if sequence.docs is None else (sequence.docs > 0).astype(jnp.int32)

    def step(q, k, v, log_decay, states, repeat, number, live):
        return decode(q, k, v, log_decay, states, (repeat, number), live, num_heads=log_decay.shape[0])

    in_axes = (*(tokens,) * 3, (heads,), stacked, (), (), None if live is None else (rows,))
    qkv = (x_BTHK.reshape(batch, length, -1) for x_BTHK in project_qkv(params, x_BTD, sequence.rope, config))
    place = map(jnp.int32, cache.place)
    o_BTX, states = per_device(step, in_axes, (tokens, stacked))(*qkv, log_decay_H, states, *place, live)
    o_BTHV = o_BTX.reshape(batch, length, config.num_heads, -1)
    return gated_output(params, o_BTHV, x_BTD, config), cache._replace(leaves=cache.leaves | {"state": states})


def _flat_projection(params, name: str, x_BTD):
    y_BTX = x_BTD @ params[name].astype(x_BTD.dtype).reshape(x_BTD.shape[-1], -1)
    bias = params.get(f"{name}_bias")
    return y_BTX if bias is None else y_BTX + bias.astype(x_BTD.dtype).reshape(-1)


def gated_output(params, o_BTHV, x_BTD, config: ModelConfig):
    """Group norm, then the sigmoid gate, then the projection to the model width (steps 4-6)."""
    o_BTHV = group_rms_norm(o_BTHV, params["norm"], config.num_norm_groups, config.norm_eps)
    gate_BTHV = jax.nn.sigmoid(jnp.einsum("BTD,DHV->BTHV", x_BTD, params["gate"].astype(x_BTD.dtype)))
    return project_out(params, o_BTHV * gate_BTHV)
