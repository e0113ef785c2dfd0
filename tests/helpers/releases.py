"""config.json of the releases, with the keys that the files have (values of sizes: docs/architecture.md §13)."""


def auto_map(version: str) -> dict[str, str]:
    modeling, family = f"modeling_bailing_moe_{version}", f"BailingMoe{version.title().replace('_', '')}"
    return {
        "AutoConfig": f"configuration_bailing_moe_{version}.{family}Config",
        "AutoModel": f"{modeling}.{family}Model",
        "AutoModelForCausalLM": f"{modeling}.{family}ForCausalLM",
    }


SHARED = {
    "attention_dropout": 0.0, "bos_token_id": 156891, "embedding_dropout": 0.0, "eos_token_id": 156892,
    "head_dim": 128, "hidden_act": "silu", "initializer_range": 0.006, "max_window_layers": 20,
    "moe_router_enable_expert_bias": True, "n_group": 8, "norm_topk_prob": True, "num_experts": 256,
    "num_experts_per_tok": 8, "num_shared_experts": 1, "output_dropout": 0.0, "output_router_logits": False,
    "pad_token_id": 156892, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "routed_scaling_factor": 2.5, "router_dtype": "fp32", "score_function": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 4, "torch_dtype": "bfloat16", "transformers_version": "4.52.3", "use_bias": False, "use_cache": True,
    "use_qk_norm": True, "use_qkv_bias": False, "use_rmsnorm": True, "use_sliding_window": False, "norm_head": False,
    "vocab_size": 157184,
}  # fmt: skip
MINI = dict(
    hidden_size=2048, num_hidden_layers=20, num_attention_heads=16, num_key_value_heads=4, intermediate_size=5120,
    first_k_dense_replace=1, moe_intermediate_size=512, moe_shared_expert_intermediate_size=512,
)  # fmt: skip
FLASH = dict(
    hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=4, intermediate_size=9216,
    first_k_dense_replace=1, moe_intermediate_size=1024, moe_shared_expert_intermediate_size=1024,
)  # fmt: skip
TRILLION = dict(
    hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, intermediate_size=18432,
    first_k_dense_replace=4, moe_intermediate_size=2048, moe_shared_expert_intermediate_size=2048,
)  # fmt: skip
V2 = {
    "architectures": ["BailingMoeV2ForCausalLM"], "model_type": "bailing_moe", "auto_map": auto_map("v2"),
    "rope_theta": 600000, "max_position_embeddings": 32768,
}  # fmt: skip
LINEAR = {
    "architectures": ["BailingMoeLinearV2ForCausalLM"], "model_type": "bailing_moe_linear",
    "auto_map": auto_map("linear_v2"), "group_norm_size": 4, "linear_silu": False, "num_nextn_predict_layers": 0,
    "max_position_embeddings": 131072,
}  # fmt: skip
V25 = {
    "architectures": ["BailingMoeV2_5ForCausalLM"], "model_type": "bailing_hybrid", "auto_map": auto_map("v2_5"),
    "layer_group_size": 8, "linear_silu": False, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "rope_interleave": True, "rope_theta": 6000000,
    "max_position_embeddings": 131072, "mtp_loss_scaling_factor": 0, "num_kv_heads_for_linear_attn": 0,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "eos_token_id": 156895,
}  # fmt: skip
FP8 = {
    "quantization_config": {
        "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
    }
}  # fmt: skip

LING_1T = SHARED | TRILLION | V2 | {"rotary_dim": 64}
del LING_1T["partial_rotary_factor"]
YARN_128K = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
HYBRID_1T = SHARED | TRILLION | V25 | {"num_key_value_heads": 64, "group_norm_size": 8}
MTP = {"num_nextn_predict_layers": 1}
RELEASES = {
    "Ling-mini-2.0": SHARED | MINI | V2,
    "Ling-mini-base-2.0-5T": SHARED | MINI | V2 | {"rope_theta": 10000, "max_position_embeddings": 4096},
    "Ring-mini-2.0": SHARED | MINI | V2 | {"num_nextn_predict_layers": 0, "mtp_loss_scaling_factor": 0},
    "Ling-flash-2.0": SHARED | FLASH | V2 | {"num_nextn_predict_layers": 0},
    "Ring-flash-2.0": SHARED | FLASH | V2 | {"rope_scaling": YARN_128K, "max_position_embeddings": 131072},
    "Ling-1T": LING_1T,
    "Ring-1T": LING_1T | {"max_position_embeddings": 65536},
    "Ring-mini-linear-2.0": SHARED | MINI | LINEAR | {"layer_group_size": 5, "rope_theta": 1000000},
    "Ring-flash-linear-2.0": SHARED | FLASH | LINEAR | {"layer_group_size": 8, "rope_theta": 600000},
    "Ling-2.5-1T": HYBRID_1T | {"num_nextn_predict_layers": 0},
    "Ring-2.5-1T": HYBRID_1T | {"num_nextn_predict_layers": 0} | FP8,
    "Ling-2.6-1T": HYBRID_1T | MTP | FP8,
    "Ring-2.6-1T": HYBRID_1T | MTP | FP8,
    "Ling-2.6-flash": SHARED | FLASH | V25 | MTP | {"num_key_value_heads": 32, "group_norm_size": 4},
}
# Billions of parameters, without MTP and of MTP.
COUNTS = {
    "Ling-mini-2.0": ("16.256", "0.000"), "Ling-mini-base-2.0-5T": ("16.256", "0.000"),
    "Ring-mini-2.0": ("16.256", "0.000"), "Ling-flash-2.0": ("102.890", "0.000"),
    "Ring-flash-2.0": ("102.890", "0.000"), "Ling-1T": ("999.705", "0.000"), "Ring-1T": ("999.705", "0.000"),
    "Ring-mini-linear-2.0": ("16.423", "0.000"), "Ring-flash-linear-2.0": ("104.182", "0.000"),
    "Ling-2.5-1T": ("1012.231", "0.000"), "Ring-2.5-1T": ("1012.231", "0.000"),
    "Ling-2.6-1T": ("1012.231", "13.183"), "Ring-2.6-1T": ("1012.231", "13.183"),
    "Ling-2.6-flash": ("104.187", "3.307"),
}  # fmt: skip
