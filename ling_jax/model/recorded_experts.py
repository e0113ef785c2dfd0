"""Experts that an engine recorded, on the host: arrays for `transformer.hidden_states`, and what may stand in them."""

from collections.abc import Sequence

import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.model.layers import num_moe_layers

NO_RECORD = -1  # in all entries of a token that chooses by itself


def empty_experts(rows: int, length: int, config: ModelConfig) -> np.ndarray:
    """[rows, length, L, k] without records: `NO_RECORD` everywhere, for L MoE layers.

    int8 up to 128 experts, else int16. A token takes L · k of them: 76 · 8 · 2 bytes = 1.2 kB with ling-2.6-1t, and
    31 · 8 · 2 = 0.5 kB with ling-2.6-flash.
    """
    dtype = np.min_scalar_type(-config.num_experts)
    return np.full((rows, length, num_moe_layers(config), config.top_k), NO_RECORD, dtype)


def pack_experts(records: Sequence[np.ndarray], config: ModelConfig, length: int | None = None) -> np.ndarray:
    """Rows [B, T, L, k] of records [n, L, k], each from the left, with `NO_RECORD` behind it (`empty_experts`).

    A record is what `engine.Event.experts` gave of a context, end to end. T is `length`, or that of the longest record.
    Raises ValueError if a record is longer, and as `check_experts`.
    """
    longest = max(map(len, records), default=0)
    if length is not None and longest > length:
        raise ValueError(f"a record has {longest} tokens; the rows have {length}: make them longer, or cut the context")
    packed = empty_experts(len(records), longest if length is None else length, config)
    for row, record in enumerate(records):
        check_experts(record, config, f"experts of row {row}")
        packed[row, : len(record)] = record
    return packed


def check_experts(experts: np.ndarray, config: ModelConfig, name: str = "experts") -> None:
    """Raises ValueError unless experts [..., L, k] are what this model's router may choose.

    In each MoE layer, a token has k different experts of at most `top_groups` groups: a device makes room for no more.
    Or all of its entries are `NO_RECORD`. `name` begins the message.
    """
    experts = np.asarray(experts)
    expected = (num_moe_layers(config), config.top_k)
    if experts.dtype.kind not in "iu" or experts.shape[-2:] != expected:
        raise ValueError(
            f"{name} are {experts.dtype} {experts.shape}; expected integers [..., {expected[0]}, {expected[1]}]: "
            "MoE layers, top_k"
        )
    wide = experts.astype(np.int32)
    has_record = np.any(wide != NO_RECORD, axis=(-2, -1), keepdims=True)
    _refuse(
        has_record & ((wide < 0) | (wide >= config.num_experts)),
        wide,
        name,
        f"experts are 0 to {config.num_experts - 1}, or {NO_RECORD} in all layers of a token without a record",
    )
    ordered = np.sort(wide, axis=-1)
    repeated = has_record & np.any(ordered[..., 1:] == ordered[..., :-1], axis=-1, keepdims=True)
    _refuse(repeated, wide, name, "the experts of a token are different ones")
    groups = ordered // (config.num_experts // config.num_expert_groups)
    num_groups = 1 + np.sum(groups[..., 1:] != groups[..., :-1], axis=-1, keepdims=True)
    _refuse(
        has_record & (num_groups > config.top_groups),
        wide,
        name,
        f"a token's experts are of at most {config.top_groups} of {config.num_expert_groups} groups; "
        "the record is of another model",
    )


def _refuse(wrong: np.ndarray, experts: np.ndarray, name: str, expected: str) -> None:
    """Names the first token and layer of `wrong` [..., L, 1 or k]."""
    if not wrong.any():
        return
    *token, layer, _ = np.argwhere(wrong)[0].tolist()
    found = experts[(*token, layer)].tolist()
    raise ValueError(f"{name}: token {token}, MoE layer {layer} has {found}; {expected}")
