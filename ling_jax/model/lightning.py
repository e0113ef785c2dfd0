"""Lightning attention layers (docs/architecture.md §5)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.model.gqa import out_spec, project_out, project_qkv, qkv_spec
from ling_jax.model.layer_cache import put_state, read
from ling_jax.model.norm import group_rms_norm
from ling_jax.spec import Leaf, Spec, normal, ones
from pallas_kernels.lightning_attention import lightning_attention


def lightning_spec(config: ModelConfig) -> Spec:
    c = config
    return (
        qkv_spec(c, c.num_heads)
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


def lightning(params, x_BTD, sequence, log_decay_H, cache, config: ModelConfig):
    """(gated linear attention, the cache with the new state); x is the layer's normed input, which also makes the
    gate."""
    q_BTHK, k_BTHK, v_BTHV = project_qkv(params, x_BTD, sequence.rope, config)
    o_BTHV, state_BHKV = lightning_attention(
        q_BTHK,
        k_BTHK,
        v_BTHV,
        log_decay_H,
        initial_state=None if cache is None else read(cache, "state"),
        segment_ids=sequence.docs,
        chunk_size=config.lightning_chunk,
    )
    cache = None if cache is None else put_state(cache, "state", state_BHKV)
    return gated_output(params, o_BTHV, x_BTD, config), cache


def gated_output(params, o_BTHV, x_BTD, config: ModelConfig):
    """Group norm, then the sigmoid gate, then the projection to the model width (steps 4-6)."""
    o_BTHV = group_rms_norm(o_BTHV, params["norm"], config.num_norm_groups, config.norm_eps)
    gate_BTHV = jax.nn.sigmoid(jnp.einsum("BTD,DHV->BTHV", x_BTD, params["gate"].astype(x_BTD.dtype)))
    return project_out(params, o_BTHV * gate_BTHV)
