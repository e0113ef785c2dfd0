"""GQA layers become Lightning layers: keys and values for all heads, a gate, a group norm (report §2.1.3, step 1)."""

import dataclasses

import numpy as np

from ling_jax.config import ModelConfig, nearest
from ling_jax.spec import Params

KV_HEADS = ("random", "repeat")


def hybrid_config(
    source: ModelConfig, *, layer_group_size: int, num_norm_groups: int, slope_layer_offset: int = 0
) -> ModelConfig:
    """The config with Lightning layers: of each group of `layer_group_size` layers all but the last, a trailing
    incomplete group none (docs/architecture.md §2). The softmax layers stay GQA.

    Raises ValueError where the source is a hybrid already, lacks QK-norms, or no layer would be converted.
    """
    if source.softmax != "gqa" or source.layer_group_size != 1:
        raise ValueError(
            f"the source has softmax {source.softmax!r} and layer_group_size {source.layer_group_size}: it is a hybrid "
            "or MLA already; migration starts from a Ling 2.0 model, all of whose layers are GQA"
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
    """[H] the key/value head that each head of the wide layer gets; -1: a new one.

    "random" keeps head g as the first of its query group (our choice: the report does not say where), "repeat" gives it
    to the whole group.
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
    """Parameters of a Lightning mixer from those of a GQA mixer, both of one layer (`gqa_spec`, `lightning_spec`).

    Queries, output, QK-norm and biases stay; keys and values get all heads, new ones drawn from N(0, init_std²)
    (Ling 2.0 report §3.2.1) with biases of 0; the gate is drawn too, so that it begins near 1/2, and the group norm is
    1. On the host, in the dtype of the query projection. The report's new heads are random; "repeat" keeps more of what
    the layer did.
    """
    heads = source_heads(config.num_heads, params["k"].shape[1], kv_heads)
    hidden, num_heads, head_dim = params["q"].shape
    dtype = params["q"].dtype
    draw = lambda shape: (config.init_std * rng.standard_normal(shape, np.float32)).astype(dtype)  # noqa: E731
    wide = {name: np.asarray(leaf) for name, leaf in params.items()}
    for name in ("k", "v"):
        wide[name] = draw((hidden, num_heads, head_dim))
        wide[name][:, heads >= 0] = np.asarray(params[name])[:, heads[heads >= 0]]
        if (bias := f"{name}_bias") in params:
            wide[bias] = np.where(heads[:, None] >= 0, np.asarray(params[bias])[heads], 0).astype(params[bias].dtype)
    return wide | {"gate": draw((hidden, num_heads, head_dim)), "norm": np.ones((num_heads, head_dim), dtype)}
