"""Hugging Face's config.json -> ModelConfig: its values, checks of them, and the keys that are not read."""

import json
from typing import Any, NamedTuple

from ling_jax.checkpoint.hf_keys import (
    ARCHITECTURES,
    DROPOUTS,
    FFN_LIST,
    HARMLESS,
    KEYS,
    LINEAR_HEADS,
    LING_3,
    LING_3_MARKS,
    MIXER_LISTS,
    OFF_PREFIXES,
    ORIGINAL_LENGTH,
    PLACES,
    PORTED,
    ROPE,
    TABLE,
    UNREAD,
    V25,
    YARN,
    Family,
    Key,
    Kind,
    nothing,
    one_of,
    only,
)
from ling_jax.config import ModelConfig, Yarn
from ling_jax.messages import shown

MAX_NAMED = 50  # keys in a message; our choice


class Found(NamedTuple):
    """The values that a file has for the keys of the table."""

    values: dict[str, Any]  # key -> value; None where the file lacks it
    places: dict[str, str]  # key -> its name in this file, for messages


def read_model(hf: dict[str, Any]) -> ModelConfig:
    """`from_hf` without `hf_source` and warnings. The length of no loop depends on a number in the file."""
    if not isinstance(hf, dict):
        raise ValueError(f"config.json is {_shown(hf)}; expected an object")
    name = _architecture(hf)
    if name != PORTED:
        return _read_as(hf, name)
    try:
        return _read_as(hf, next(name for name, family in ARCHITECTURES.items() if family.name == V25))
    except ValueError as error:
        raise ValueError(
            f"{error} ({PORTED} without kda_* keys is read as Ling 2.6; else it is not supported)"
        ) from None


def unread_keys(hf: dict[str, Any]) -> list[str]:
    """The first `MAX_NAMED` keys that are neither read nor known as harmless, as texts for a message."""
    known = HARMLESS | UNREAD.keys() | {place for place in PLACES if "." not in place}
    named = [key for key in hf if key not in known and not key.startswith(OFF_PREFIXES)]
    named += [key for key in DROPOUTS if hf.get(key)]
    inside = [f"{rope}.{key}" for rope in ROPE for key in hf.get(rope) or ()]
    named += [place for place in inside if place not in PLACES and place not in UNREAD]
    more = [f"… and {len(named) - MAX_NAMED} more"] if len(named) > MAX_NAMED else []
    return [_name(name) for name in named[:MAX_NAMED]] + more


def _architecture(hf: dict[str, Any]) -> str:
    found, expected = hf.get("architectures"), f"a list of names with one of {', '.join(ARCHITECTURES)}"
    marks = [key for key, value in hf.items() if key.startswith("kda_") and value is not None]
    marks += [key for key in LING_3_MARKS if hf.get(key)]
    if marks or (isinstance(found, list) and LING_3 in found):
        by = f" with {_name(marks[0])}" if marks else ""
        raise ValueError(
            f"config.json: architectures is {_shown(found)}{by}, which is Ling 3.0 (delta attention, gated MLA): it "
            f"shares model_type with Ling 2.6 and is another model; expected {expected}"
        )
    if found is None:
        raise ValueError(f"config.json: architectures is missing; expected {expected}")
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise refusal("architectures", found, expected)
    if found[0] not in ARCHITECTURES and found[0] != PORTED:
        raise ValueError(f"config.json: architectures is {_shown(found)}, which is not supported; expected {expected}")
    return found[0]


def _read_as(hf: dict[str, Any], architecture: str) -> ModelConfig:
    family = ARCHITECTURES[architecture]
    _check_unread(hf, family)
    found = Found({}, {})
    for key in TABLE:
        if family.name in key.families:
            place, value = _find(hf, key, architecture)
            found.values[key.name], found.places[key.name] = value, place
    yarn = _yarn(found)
    _fill_in(found.values, family)
    _check_relations(found, family)
    config = _model(found.values, family, yarn)
    _check_repeated(hf, config)
    return config


def at(hf: dict[str, Any], place: str) -> Any:
    """The value at "key" or "object.key"; None where there is none."""
    first, _, second = place.partition(".")
    value = hf.get(first)
    return value.get(second) if second and value is not None else value


def _find(hf: dict[str, Any], key: Key, architecture: str) -> tuple[str, Any]:
    """(place, value) of a key. Raises ValueError where two places have different values."""
    found = [(place, value) for place in key.places if (value := at(hf, place)) is not None]
    for place, value in found:
        if not key.kind.accepts(value):
            raise refusal(place, value, f"{key.kind.expected} ({key.meaning})")
    for place, value in found[1:]:
        if value != found[0][1]:
            first = f"{found[0][0]} is {_shown(found[0][1])}"
            raise ValueError(f"config.json: {first} and {place} is {_shown(value)}; expected one value ({key.meaning})")
    if found:
        return found[0][0], float(found[0][1]) if key.kind.is_float else found[0][1]
    # A converter of the 2.0 family writes null for one group; a file without the key has the official class's default.
    if key.needed and not (key.name in ("n_group", "topk_group") and key.name in hf):
        expected = f"expected {key.kind.expected} ({key.meaning})"
        raise ValueError(f"config.json: {key.name} is missing; {architecture} needs it: {expected}")
    return key.name, None


def _check_unread(hf: dict[str, Any], family: Family) -> None:
    """Raises ValueError where a key that is not read asks for another computation."""
    for rope in ROPE:
        scaling = hf.get(rope)
        if not isinstance(scaling, dict | None):
            raise refusal(rope, scaling, "an object or null")
        for key, value in (scaling or {}).items():
            if isinstance(value, dict):
                raise refusal(f"{rope}.{key}", value, f"its keys in {rope} itself: one rope serves all layers")
    for place, kind in UNREAD.items():
        if not kind.accepts(value := at(hf, place)):
            raise refusal(place, value, kind.expected)
    off = nothing()
    for key, value in hf.items():
        if key.startswith(OFF_PREFIXES) and not off.accepts(value):
            raise refusal(key, value, off.expected)
    if hf.get("use_sliding_window") is not False and not off.accepts(window := hf.get("sliding_window")):
        raise refusal("sliding_window", window, f"{off.expected}, unless use_sliding_window is false")
    if not family.hybrid and not nothing(1).accepts(group := hf.get("layer_group_size")):
        raise refusal("layer_group_size", group, "null or 1: this architecture has no Lightning layers")
    if not only(family.softmax).accepts(found := hf.get("full_attention_type")):
        raise refusal("full_attention_type", found, f"{family.softmax!r}, as the architecture has it")


def _yarn(found: Found) -> Yarn | None:
    """The YaRN scaling; None where the objects of `ROPE` only repeat rope's parameters, as in transformers 5."""
    given = {key: found.values[f"rope_scaling.{key}"] for key in YARN}
    if found.values["rope_scaling.rope_type"] != "yarn":
        for key in ("factor", "attention_factor"):
            if given[key] not in (None, 1):
                raise refusal(found.places[f"rope_scaling.{key}"], given[key], "null, or rope_type 'yarn' beside it")
        return None
    place = found.places["rope_scaling.rope_type"]
    for key in ("factor", ORIGINAL_LENGTH):
        if given[key] is None:
            expected = KEYS[f"rope_scaling.{key}"].kind.expected
            raise ValueError(f"config.json: {place} is 'yarn' without {key}; expected {expected}")
    yarn = Yarn(**{YARN[key]: value for key, value in given.items() if value is not None})
    if yarn.beta_fast <= yarn.beta_slow:
        key = next(key for key in ("beta_fast", "beta_slow") if given[key] is not None)
        above, below = f"above beta_slow ({yarn.beta_slow:g})", f"below beta_fast ({yarn.beta_fast:g})"
        side = above if key == "beta_fast" else below
        raise refusal(found.places[f"rope_scaling.{key}"], given[key], f"a number {side}")
    return yarn


def _fill_in(values: dict[str, Any], family: Family) -> None:
    """Fills in the defaults that follow from other keys."""
    heads = values["num_attention_heads"]
    if values["head_dim"] is None or _has_head_dim_of_port(values, family):
        if values["hidden_size"] % heads:
            size = values["hidden_size"]
            raise ValueError(f"config.json: head_dim is missing; num_attention_heads {heads} does not divide {size}")
        values["head_dim"] = values["hidden_size"] // heads
    values["n_group"] = values["n_group"] or 1
    values["topk_group"] = values["topk_group"] or (1 if values["n_group"] == 1 else 0)
    values["num_key_value_heads"] = values.get("num_key_value_heads") or heads
    values["num_shared_experts"] = values["num_shared_experts"] or 0
    if values["moe_shared_expert_intermediate_size"] is None:
        values["moe_shared_expert_intermediate_size"] = values["moe_intermediate_size"]
    if values["rotary_dim"] is None:
        factor = values["partial_rotary_factor"]
        if factor is None and family.softmax == "mla" and values["head_dim"] != values["qk_rope_head_dim"]:
            raise ValueError(
                "config.json: partial_rotary_factor is missing, and so is rotary_dim; expected one of them, since "
                f"qk_rope_head_dim {values['qk_rope_head_dim']} is not the whole head_dim {values['head_dim']}"
            )
        values["rotary_dim"] = int(values["head_dim"] * (1.0 if factor is None else factor))


def _has_head_dim_of_port(values: dict[str, Any], family: Family) -> bool:
    """Whether head_dim is qk_rope_head_dim, as transformers' port of 2.6 writes it, and not that of a Lightning head.

    Then partial_rotary_factor is a part of hidden_size / num_attention_heads. As a part of head_dim it would give the
    two mixers different tables of rotations, which the official code cannot have.
    """
    factor, heads = values["partial_rotary_factor"], values["num_attention_heads"]
    if family.softmax != "mla" or factor is None or values["head_dim"] != (rope := values["qk_rope_head_dim"]):
        return False
    whole = values["hidden_size"] % heads == 0 and int(values["hidden_size"] // heads * factor) == rope
    return whole and int(rope * factor) != rope and values["rotary_dim"] in (None, rope)


def _check_relations(found: Found, family: Family) -> None:
    """Raises ValueError where the values of two keys contradict each other."""
    v, place = found.values, found.places

    def require(holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise refusal(place[key], v[key], expected)

    def require_divisor(key: str, whole_key: str) -> None:
        require(v[whole_key] % v[key] == 0, key, f"a divisor of {whole_key} ({v[whole_key]})")

    layers, groups = v["num_hidden_layers"], v["n_group"]
    require(v["first_k_dense_replace"] <= layers, "first_k_dense_replace", f"at most num_hidden_layers ({layers})")
    require_divisor("n_group", "num_experts")
    require(1 <= v["topk_group"] <= groups, "topk_group", f"a whole number from 1 to n_group ({groups})")
    eligible = v["num_experts"] // groups * v["topk_group"]
    expected = f"at most {eligible}, the experts of topk_group ({v['topk_group']}) of n_group ({groups}) groups"
    require(v["num_experts_per_tok"] <= eligible, "num_experts_per_tok", expected)
    if family.hybrid:
        require_divisor("group_norm_size", "num_attention_heads")
    if family.softmax == "gqa":
        require_divisor("num_key_value_heads", "num_attention_heads")
    else:
        require(v["qk_rope_head_dim"] % 2 == 0, "qk_rope_head_dim", "an even number")
    rotary, head, factor = v["rotary_dim"], v["head_dim"], v["partial_rotary_factor"]
    named = "partial_rotary_factor" if factor and rotary == int(head * factor) else "rotary_dim"
    require(rotary % 2 == 0 and 0 < rotary <= head, named, f"an even number of rotated dims within head_dim ({head})")
    shared, depth = v["mtp_shared_depths"] or 0, v["num_nextn_predict_layers"] or 0
    require(not shared or depth <= 1, "mtp_shared_depths", f"0, since num_nextn_predict_layers is {depth}")


def _model(values: dict[str, Any], family: Family, yarn: Yarn | None) -> ModelConfig:
    named = {key.field: values.get(key.name) for key in TABLE if key.field}
    fields = {field: value for field, value in named.items() if value is not None}
    fields |= {} if family.hybrid else {"layer_group_size": 1}
    fields |= {"num_kv_heads": values["num_key_value_heads"]} if family.softmax == "gqa" else {}
    # The 2.6 releases have 0, which is not the weight of their training.
    fields |= {"mtp_loss_weight": weight} if (weight := values["mtp_loss_scaling_factor"]) else {}
    return ModelConfig(
        full_attention=family.softmax,
        head_dim=values["head_dim"],
        rotary_dim=values["rotary_dim"],
        num_expert_groups=values["n_group"],
        top_groups=values["topk_group"],
        shared_ffn_size=values["num_shared_experts"] * values["moe_shared_expert_intermediate_size"],
        rope_scaling=yarn,
        **fields,
    )


def _check_repeated(hf: dict[str, Any], config: ModelConfig) -> None:
    """Raises ValueError where keys that repeat others contradict them."""
    heads = config.num_heads
    for key in LINEAR_HEADS:
        if not nothing(heads).accepts(value := hf.get(key)):
            expected = f"null, 0 or num_attention_heads ({heads}): Lightning layers have all heads"
            raise refusal(key, value, expected)
    total, found = config.nope_dim + config.rope_dim, hf.get("qk_head_dim")
    if config.full_attention == "mla" and not only(total).accepts(found):
        raise refusal("qk_head_dim", found, f"null or qk_nope_head_dim + qk_rope_head_dim ({total})")
    softmax, lightning = one_of("full_attention", "attention"), one_of("linear_attention", "lightning_attention")
    mixers = [softmax if config.is_full_attention_layer(layer) else lightning for layer in range(config.num_layers)]
    for key in MIXER_LISTS:
        _check_list(hf, key, mixers, f"softmax layers close groups of {config.layer_group_size}")
    dense, sparse = one_of("dense"), one_of("sparse")
    ffns = [dense if layer < config.first_dense_layers else sparse for layer in range(config.num_layers)]
    _check_list(hf, FFN_LIST, ffns, f"first_k_dense_replace is {config.first_dense_layers}")


def _check_list(hf: dict[str, Any], key: str, kinds: list[Kind], reason: str) -> None:
    """Raises ValueError where a list of names, one for each layer, does not fit the model."""
    if (found := hf.get(key)) is None:
        return
    if not isinstance(found, list) or len(found) != len(kinds):
        raise refusal(key, found, f"a list of num_hidden_layers ({len(kinds)}) names")
    for layer, (kind, name) in enumerate(zip(kinds, found, strict=True)):
        if not kind.accepts(name):
            raise refusal(f"{key}[{layer}]", name, f"{kind.expected}, as {reason}")


def overridden_factor(hf: dict[str, Any], config: ModelConfig) -> float | None:
    """The file's partial_rotary_factor where its `rotary_dim` contradicts it, else None."""
    for place in KEYS["partial_rotary_factor"].places:
        if (factor := at(hf, place)) is not None and int(config.head_dim * factor) != config.rotary_dim:
            return factor
    return None


def refusal(place: str, value: Any, expected: str) -> ValueError:
    """The error of a key with a wrong value."""
    return ValueError(f"config.json: {_name(place)} is {_shown(value)}; expected {expected}")


def _name(place: str) -> str:
    """A key for a message, escaped and cut if it is long or has line breaks."""
    return place if place.isprintable() and 0 < len(place) <= 80 else _shown(place)


def _shown(value: Any) -> str:
    """A value for a message: short and on one line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return shown(value)
