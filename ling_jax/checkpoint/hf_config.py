"""Hugging Face's config.json <-> ModelConfig, by the table of `hf_keys`."""

import dataclasses
import functools
import json
import sys
from typing import Any

from ling_jax.checkpoint.hf_keys import (
    ARCHITECTURES,
    FFN_LIST,
    KEYS,
    LINEAR,
    LINEAR_HEADS,
    MIXER_LISTS,
    ORIGINAL_LENGTH,
    PLACES,
    QUANTISATION,
    REPEATED,
    ROPE,
    TABLE,
    V2,
    V25,
    YARN,
    Key,
)
from ling_jax.checkpoint.hf_reading import at, overridden_factor, read_model, refusal, unread_keys
from ling_jax.checkpoint.quantised import weight_format
from ling_jax.config import ModelConfig, Yarn
from ling_jax.messages import warn

# Keys that a file may leave out because others determine them; keys of one row are written together.
DERIVED = (
    ("head_dim",),
    ("num_key_value_heads",),
    ("rotary_dim", "partial_rotary_factor"),
    ("num_shared_experts", "moe_shared_expert_intermediate_size"),
)
DERIVED_FROM = ("hidden_size", "num_attention_heads", "head_dim", "moe_intermediate_size")
OF_ARCHITECTURE = ("architectures", "model_type", "auto_map", *REPEATED)


def from_hf(hf: dict[str, Any]) -> ModelConfig:
    """The ModelConfig of a Hugging Face config.json.

    The key `architectures` decides the family, because Ling 2.6 and Ling 3.0 share a `model_type`. `hf_source` keeps
    the file for `to_hf`, without `quantization_config`, since parameters in memory are not quantised. A line on stderr
    names the keys that are not read. Raises ValueError that names the key, its value and the expected ones: on another
    architecture, missing keys, values out of range, contradictions, and keys that ask for another computation.
    """
    config = read_model(hf)
    weight_format(hf)  # raises on a format that is not supported
    named = unread_keys(hf)
    if (overridden := overridden_factor(hf, config)) is not None:
        named.append(f"partial_rotary_factor {overridden} (rotary_dim {config.rotary_dim} wins)")
    if named:
        _warn_once(f"config.json: keys that are not read: {', '.join(named)}", sys.stderr)
    if config.full_attention == "mla" and config.rotary_dim != config.rope_dim:
        dims = f"{config.rotary_dim} dims of Lightning heads are rotated, and qk_rope_head_dim is {config.rope_dim}"
        _warn_once(f"config.json: {dims}; the official code has one table for both", sys.stderr)
    kept = {key: value for key, value in hf.items() if key not in QUANTISATION}
    for key, value in kept.items():
        if not _can_be_written(value):
            raise refusal(key, value, "a value that can be written again")
    return dataclasses.replace(config, hf_source=json.dumps(kept))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json that `from_hf` reads back to the same model, except that an MTP weight of 0 cannot be written.

    A model that came from a file keeps the keys of the file; keys of changed fields get the new value. If the
    architecture has changed, the keys of the old one are dropped. `slope_layer_offset` is always written,
    `quantization_config` never.
    """
    if not config.hf_source:
        return _header(config) | _keys(config)
    source = json.loads(config.hf_source)
    before = read_model(source)
    if _kind(before) != _kind(config):
        new = _header(config) | _keys(config)
        old = {place.split(".")[0] for place in PLACES}.union(new, ROPE, OF_ARCHITECTURE)
        return new | {key: value for key, value in source.items() if key not in old}
    return _update(source, before, config) | {"slope_layer_offset": config.slope_layer_offset}


def _can_be_written(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):  # not JSON, a number with thousands of digits, too deep nesting
        return False
    return True


@functools.cache
def _warn_once(text: str, stream) -> None:
    """Warns once, because a program reads the config of a folder more than once."""
    warn(text)


def _kind(config: ModelConfig) -> tuple[str, bool]:
    return config.full_attention, config.layer_group_size > 1


def _header(config: ModelConfig) -> dict[str, Any]:
    for name, family in ARCHITECTURES.items():
        if (family.softmax, family.hybrid) == _kind(config):
            return {
                "architectures": [name], "model_type": family.model_type, "hidden_act": "silu", "linear_silu": False,
                "rope_interleave": True, "score_function": "sigmoid", "tie_word_embeddings": False,
                "norm_topk_prob": True, "moe_router_enable_expert_bias": True, "router_dtype": "fp32",
            }  # fmt: skip
    raise ValueError(
        f"no Hugging Face architecture has full_attention {config.full_attention!r} with layer_group_size "
        f"{config.layer_group_size}"
    )


def _keys(config: ModelConfig, num_shared: int = 1) -> dict[str, Any]:
    """{key: value} of the table for a model in transformers 4's form, with `num_shared` shared experts if possible."""
    family = V25 if config.full_attention == "mla" else LINEAR if config.layer_group_size > 1 else V2
    total = config.shared_ffn_size
    num_shared = num_shared if total and total % num_shared == 0 else int(total > 0)
    return {key.name: getattr(config, key.field) for key in TABLE if key.field and family in key.families} | {
        "num_key_value_heads": config.num_kv_heads or config.num_heads,
        "head_dim": config.head_dim,
        "n_group": config.num_expert_groups,
        "topk_group": config.top_groups,
        "num_shared_experts": num_shared,
        "moe_shared_expert_intermediate_size": total // num_shared if total else config.expert_ffn_size,
        "mtp_loss_scaling_factor": config.mtp_loss_weight,
        "rotary_dim": config.rotary_dim,
        "partial_rotary_factor": config.rotary_dim / config.head_dim,
        "rope_scaling": _scaling(config.rope_scaling),
    }


def _scaling(yarn: Yarn | None) -> dict[str, Any] | None:
    if yarn is None:
        return None
    fields = {key: getattr(yarn, field) for key, field in YARN.items()}
    return {"rope_type": "yarn"} | {key: value for key, value in fields.items() if value is not None}


def _update(hf: dict[str, Any], before: ModelConfig, config: ModelConfig) -> dict[str, Any]:
    """The file `hf` of `before` with the values in which `config` differs."""
    num_shared = hf.get("num_shared_experts") or hf.get("n_shared_experts") or 1
    old, new = _keys(before, num_shared), _keys(config, num_shared)
    changed = {key for key in new if new[key] != old[key]}
    for group in DERIVED:
        left_out = any(not any(at(hf, place) for place in KEYS[key].places) for key in group)
        if changed.intersection(group) or (left_out and changed.intersection(DERIVED_FROM)):
            changed |= set(group)
    if hf.get("head_dim") not in (None, old["head_dim"]):  # a port's head_dim, which other code reads differently
        changed.add("head_dim")
    for key in sorted(changed, key=list(new).index):
        if key == "rope_scaling":
            _write_scaling(hf, new[key])
        else:
            _write(hf, KEYS[key], new[key])
    _update_repeated(hf, changed, config)
    return hf


def _update_repeated(hf: dict[str, Any], changed: set[str], config: ModelConfig) -> None:
    """Drops lists of layers that no longer fit, and updates numbers that repeat others."""
    stale = MIXER_LISTS if changed & {"num_hidden_layers", "layer_group_size"} else ()
    stale += (FFN_LIST,) if changed & {"num_hidden_layers", "first_k_dense_replace"} else ()
    for key in stale:
        if hf.get(key) is not None:
            del hf[key]
    numbers = dict.fromkeys(LINEAR_HEADS, config.num_heads)
    numbers |= {"qk_head_dim": config.nope_dim + config.rope_dim} if config.full_attention == "mla" else {}
    hf |= {key: number for key, number in numbers.items() if hf.get(key)}


def _write(hf: dict[str, Any], key: Key, value: Any) -> None:
    """Writes a value at every place where the file has the key, else on the top level."""
    places = [place.partition(".") for place in key.places]
    held = [
        (first, second) for first, _, second in places if first in hf and (not second or second in (hf[first] or ()))
    ]
    for first, second in held or [(key.name, "")]:
        if second:
            hf[first][second] = value
        else:
            hf[first] = value


def _write_scaling(hf: dict[str, Any], scaling: dict[str, Any] | None) -> None:
    """Writes YaRN's keys into the object that the file has for them; its other keys, such as `rope_theta`, stay."""
    for place in [place for place in ROPE if isinstance(hf.get(place), dict)] or ["rope_scaling"]:
        gone = ("rope_type", "type", *YARN)
        kept = {key: value for key, value in (hf.get(place) or {}).items() if key not in gone}
        hf[place] = (kept | (scaling or {"rope_type": "default"})) if kept or scaling else None
    if ORIGINAL_LENGTH in hf:
        hf[ORIGINAL_LENGTH] = (scaling or {}).get(ORIGINAL_LENGTH)
