"""Conversion of GQA layers to Lightning layers: new heads, gate and group norm (report §2.1.3, step 1)."""

import dataclasses

import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.messages import nearest
from ling_jax.spec import Params

KV_HEADS = ("random", "repeat")


def hybrid_config(
    source: ModelConfig, *, layer_group_size: int, num_norm_groups: int, slope_layer_offset: int = 0
) -> ModelConfig:
    """The source's config as a hybrid: all but the last layer of each group become Lightning layers.

    The other layers, and those of an incomplete last group, stay GQA (docs/architecture.md §2). Raises ValueError if
    the source is a hybrid already or lacks QK-norms, or if no layer would be converted.
    """
    if source.full_attention != "gqa" or source.layer_group_size != 1:
        raise ValueError(
            f"the source has full_attention {source.full_attention!r} and layer_group_size "
            f"{source.layer_group_size}: it is a hybrid or MLA already; migration starts from a Ling 2.0 model, all of "
            "whose layers are GQA"
        )
    if source.qk_norm and not source.gqa_qk_norm:
        raise ValueError(
            "the source's QK-norms are fused (gqa_qk_norm is False); Lightning layers need them as they were"
        )
    if not 2 <= layer_group_size <= source.num_layers:
        raise ValueError(
            f"layer_group_size is {layer_group_size}: none of the {source.num_layers} layers would become a Lightning "
            f"layer; it is 2 to {source.num_layers}"
        )
    return dataclasses.replace(
        source,
        layer_group_size=layer_group_size,
        num_norm_groups=num_norm_groups,
        slope_layer_offset=slope_layer_offset,
    )


def source_heads(num_heads: int, num_kv_heads: int, kv_heads: str) -> np.ndarray:
    """[H] int: the key/value head of the source that each new head copies; -1 for a random head.

    "random" copies head g to the first head of its query group (our choice; the report does not say where), "repeat" to
    the whole group. Raises ValueError for an unknown option or heads that do not divide.
    """
    if kv_heads not in KV_HEADS:
        raise ValueError(f"kv_heads is {kv_heads!r}{nearest(str(kv_heads), KV_HEADS)}; one of {', '.join(KV_HEADS)}")
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"{num_kv_heads} key/value heads do not divide the {num_heads} heads")
    group = num_heads // num_kv_heads
    heads = np.arange(num_heads)
    return np.where((heads % group == 0) | (kv_heads == "repeat"), heads // group, -1)


def gqa_to_lightning(
    params: Params, rng: np.random.Generator, config: ModelConfig, *, kv_heads: str = "random"
) -> Params:
    """The parameters of a Lightning mixer (`lightning_spec`) from those of one GQA mixer (`gqa_spec`).

    Queries, output, QK-norm and biases stay. Keys and values get all heads; new heads are drawn from N(0, init_std²)
    (Ling 2.0 report §3.2.1) with biases of 0. The gate is drawn too, so it starts near 1/2; the group norm is 1. The
    report uses random heads; "repeat" preserves more of the layer's function. Returns numpy arrays on the host in the
    dtype of the query projection.
    """
    heads = source_heads(config.num_heads, params["k"].shape[1], kv_heads)
    hidden, num_heads, head_dim = params["q"].shape
    dtype = params["q"].dtype

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return (config.init_std * rng.standard_normal(shape, np.float32)).astype(dtype)

    wide = {name: np.asarray(leaf) for name, leaf in params.items()}
    for name in ("k", "v"):
        wide[name] = draw((hidden, num_heads, head_dim))
        wide[name][:, heads >= 0] = np.asarray(params[name])[:, heads[heads >= 0]]
        if (bias := f"{name}_bias") in params:
            wide[bias] = np.where(heads[:, None] >= 0, np.asarray(params[bias])[heads], 0).astype(params[bias].dtype)
    return wide | {"gate": draw((hidden, num_heads, head_dim)), "norm": np.ones((num_heads, head_dim), dtype)}
