"""Hugging Face's config.json <-> ModelConfig."""

import dataclasses
from typing import Any

from ling_jax.config import ModelConfig, Yarn

# Hugging Face's config.json, key -> field, where the value carries over as it is.
HF_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_size",
    "first_k_dense_replace": "first_dense_layers",
    "num_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "n_group": "num_expert_groups",
    "topk_group": "top_groups",
    "moe_intermediate_size": "expert_ffn_size",
    "routed_scaling_factor": "routed_scale",
    "rope_theta": "rope_theta",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "norm_eps",
}
HF_OPTIONAL_FIELDS = {  # a missing key leaves the field's default
    "use_qk_norm": "qk_norm",
    "use_qkv_bias": "qkv_bias",
    "use_bias": "out_bias",
    "num_nextn_predict_layers": "mtp_depth",
    "mtp_loss_scaling_factor": "mtp_loss_weight",
    "router_z_loss_coef": "z_loss_weight",
    "initializer_range": "init_std",
    "slope_layer_offset": "slope_layer_offset",
    "gqa_qk_norm": "gqa_qk_norm",  # ours: the official code would miss the norms' weights
    "mtp_shared_depths": "mtp_shared_depths",  # ours, as the next: the official code runs one depth a module
    "mtp_detached": "mtp_detached",
}
HF_MLA_FIELDS = {
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "nope_dim",
    "qk_rope_head_dim": "rope_dim",
    "v_head_dim": "v_dim",
}
# architecture -> (model_type, softmax kind, has Lightning layers)
ARCHITECTURES = {
    "BailingMoeV2_5ForCausalLM": ("bailing_hybrid", "mla", True),
    "BailingMoeLinearV2ForCausalLM": ("bailing_moe_linear", "gqa", True),
    "BailingMoeV2ForCausalLM": ("bailing_moe", "gqa", False),
}
LING_3_ARCHITECTURES = ("BailingMoeV3ForCausalLM", "BailingHybridForCausalLM")
# Values of HF keys that the official code computes with, whatever else a file may ask for.
HF_FIXED = {
    "hidden_act": "silu",
    "linear_silu": False,
    "rope_interleave": True,
    "score_function": "sigmoid",
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
}


def from_hf(hf: dict[str, Any]) -> ModelConfig:
    """ModelConfig of a Hugging Face config.json.

    Dispatches on `architectures`: Ling 2.6 and Ling 3.0 share a `model_type`. Raises ValueError on another
    architecture, on a missing key and on a value that the official code does not compute.
    """
    _, softmax, hybrid = ARCHITECTURES[_architecture(hf)]
    for key, value in HF_FIXED.items():
        if key in hf and hf[key] != value:
            raise ValueError(
                f"config.json: {key} is {hf[key]!r}; the released models have {value!r}, nothing else runs"
            )
    fields = {field: _hf_value(hf, key) for key, field in HF_FIELDS.items()}
    fields |= {field: hf[key] for key, field in HF_OPTIONAL_FIELDS.items() if hf.get(key) is not None}
    if softmax == "mla":
        fields |= {field: _hf_value(hf, key) for key, field in HF_MLA_FIELDS.items() if key != "q_lora_rank"}
        fields["q_lora_rank"] = hf.get("q_lora_rank")
    else:
        fields["num_kv_heads"] = hf.get("num_key_value_heads") or fields["num_heads"]
    if hybrid:
        fields |= {
            "layer_group_size": _hf_value(hf, "layer_group_size"),
            "num_norm_groups": _hf_value(hf, "group_norm_size"),
        }
        _check_linear_heads(hf)
    else:
        fields["layer_group_size"] = 1
    head_dim = hf.get("head_dim") or fields["hidden_size"] // fields["num_heads"]
    shared = hf.get("moe_shared_expert_intermediate_size") or fields["expert_ffn_size"]
    return ModelConfig(
        softmax=softmax,
        head_dim=head_dim,
        rotary_dim=_rotary_dim(hf, head_dim),
        shared_ffn_size=shared * (hf.get("num_shared_experts") or 0),
        rope_scaling=_yarn(hf.get("rope_scaling")),
        compute_dtype=hf.get("torch_dtype") or hf.get("dtype") or "bfloat16",
        **fields,
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json that `from_hf` reads back to the same model; `slope_layer_offset` is written always."""
    architecture = _architecture_of(config)
    hybrid = ARCHITECTURES[architecture][2]
    hf = {"architectures": [architecture], "model_type": ARCHITECTURES[architecture][0]}
    hf |= {key: getattr(config, field) for key, field in (HF_FIELDS | HF_OPTIONAL_FIELDS).items()}
    hf |= {key: value for key, value in HF_FIXED.items() if key != "scoring_func"}
    if config.softmax == "mla":
        hf |= {key: getattr(config, field) for key, field in HF_MLA_FIELDS.items()}
    if hybrid:
        hf |= {"layer_group_size": config.layer_group_size, "group_norm_size": config.num_norm_groups}
    return hf | {
        "num_key_value_heads": config.num_kv_heads or config.num_heads,
        "head_dim": config.head_dim,
        "rotary_dim": config.rotary_dim,
        "partial_rotary_factor": config.rotary_dim / config.head_dim,
        "num_shared_experts": int(config.shared_ffn_size > 0),
        "moe_shared_expert_intermediate_size": config.shared_ffn_size or config.expert_ffn_size,
        "rope_scaling": _hf_yarn(config.rope_scaling),
        "torch_dtype": config.compute_dtype,
        "norm_topk_prob": True,
        "moe_router_enable_expert_bias": True,
        "router_dtype": "fp32",
    }


def _architecture(hf: dict[str, Any]) -> str:
    found = (hf.get("architectures") or ["none"])[0]
    if found in LING_3_ARCHITECTURES or "kda_lower_bound" in hf:
        raise ValueError(
            f"config.json: architecture {found} is Ling 3.0 (delta attention, gated MLA), which shares model_type "
            f"{hf.get('model_type')!r} with Ling 2.6 but is another model; supported are {', '.join(ARCHITECTURES)}"
        )
    if found not in ARCHITECTURES:
        raise ValueError(
            f"config.json: architecture {found} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    return found


def _architecture_of(config: ModelConfig) -> str:
    for name, (_, softmax, hybrid) in ARCHITECTURES.items():
        if (softmax, hybrid) == (config.softmax, config.layer_group_size > 1):
            return name
    raise ValueError(
        f"no Hugging Face architecture has softmax {config.softmax!r} with layer_group_size {config.layer_group_size}"
    )


def _hf_value(hf: dict[str, Any], key: str):
    if hf.get(key) is None:
        raise ValueError(f"config.json: {key} is missing; {_architecture(hf)} needs it")
    return hf[key]


def _check_linear_heads(hf: dict[str, Any]) -> None:
    found, heads = hf.get("num_kv_heads_for_linear_attn") or 0, hf["num_attention_heads"]
    if found not in (0, heads):
        raise ValueError(
            f"config.json: num_kv_heads_for_linear_attn is {found}; Lightning layers have all {heads} heads"
        )


def _rotary_dim(hf: dict[str, Any], head_dim: int) -> int:
    """`rotary_dim` wins over `partial_rotary_factor`, which transformers 5 writes into `rope_scaling`."""
    if hf.get("rotary_dim"):
        return hf["rotary_dim"]
    nested = (hf.get("rope_scaling") or {}).get("partial_rotary_factor")
    return int(head_dim * (hf.get("partial_rotary_factor") or nested or 1.0))


def _yarn(scaling: dict[str, Any] | None) -> Yarn | None:
    """None where the dict only repeats the rope's parameters (`rope_type` default)."""
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ValueError(f"config.json: rope_scaling of type {kind!r}; supported are yarn and default")
    missing = [key for key in ("factor", "original_max_position_embeddings") if not scaling.get(key)]
    if missing:
        raise ValueError(f"config.json: rope_scaling is yarn without {' and '.join(missing)}")
    optional = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor")
    return Yarn(
        factor=scaling["factor"],
        original_length=scaling["original_max_position_embeddings"],
        **{key: scaling[key] for key in optional if scaling.get(key) is not None},
    )


def _hf_yarn(yarn: Yarn | None) -> dict[str, Any] | None:
    if yarn is None:
        return None
    fields = {key: value for key, value in dataclasses.asdict(yarn).items() if value is not None}
    return {"rope_type": "yarn", "original_max_position_embeddings": fields.pop("original_length")} | fields
