"""The keys of Hugging Face's config.json: types and ranges of those that are read, allowed values of the others."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """The values that a key may have."""

    accepts: Callable[[Any], bool]
    expected: str
    is_float: bool = False  # read as float, also where the file has a whole number


def whole(low: int, high: int) -> Kind:
    """Integers from `low` to `high`; JSON's true and 4.0 are none."""
    return Kind(lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}")


def above(low: float, high: float) -> Kind:
    """Numbers in (low, high]."""
    return Kind(lambda v: _is_number(v) and low < v <= high, f"a number above {low} and at most {high:g}", True)


def at_least(low: float, high: float) -> Kind:
    """Numbers in [low, high]."""
    return Kind(lambda v: _is_number(v) and low <= v <= high, f"a number from {low} to {high:g}", True)


def one_of(*values: Any) -> Kind:
    """One of some values, of the same type: 1 is not true."""
    names = [_json_name(value) for value in values]
    listed = " or ".join(([", ".join(names[:-1])] if names[:-1] else []) + names[-1:])
    return Kind(lambda v: any(type(v) is type(value) and v == value for value in values), listed)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json_name(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


FLAG = Kind(lambda v: isinstance(v, bool), "true or false")

V2, LINEAR, V25 = "2.0", "linear-2.0", "2.6"  # families; 2.5 and 2.6 are one
ALL, HYBRID, MLA = (V2, LINEAR, V25), (LINEAR, V25), (V25,)


class Family(NamedTuple):
    name: str
    model_type: str
    softmax: str
    hybrid: bool  # has Lightning layers


ARCHITECTURES = {
    "BailingMoeV2_5ForCausalLM": Family(V25, "bailing_hybrid", "mla", True),
    "BailingMoeLinearV2ForCausalLM": Family(LINEAR, "bailing_moe_linear", "gqa", True),
    "BailingMoeV2ForCausalLM": Family(V2, "bailing_moe", "gqa", False),
}
PORTED = "BailingHybridForCausalLM"  # an open transformers port's name of 2.6, and transformers' own of Ling 3.0
LING_3 = "BailingMoeV3ForCausalLM"
LING_3_MARKS = ("short_conv_kernel_size", "gated_attention_proj_granularity_type")  # beside kda_*


class Key(NamedTuple):
    """A key that is read. null counts as missing."""

    name: str  # on the top level, or in an object of `ROPE`: "rope_scaling.factor"
    kind: Kind
    meaning: str
    field: str = ""  # of ModelConfig; "": other fields are derived from the key
    needed: bool = False  # whether a file of its families must have it
    families: tuple[str, ...] = ALL
    also: tuple[str, ...] = ()  # other names of the key

    @property
    def places(self) -> tuple[str, ...]:
        return (self.name, *self.also)


ROPE = ("rope_parameters", "rope_scaling")  # names of the same object in transformers 5 and before


def in_rope(key: str) -> tuple[str, ...]:
    """The places of a key in the objects of `ROPE`."""
    return tuple(f"{place}.{key}" for place in ROPE)


def _yarn(key: str, kind: Kind, meaning: str, *also: str) -> Key:
    return Key(f"rope_scaling.{key}", kind, meaning, also=(f"rope_parameters.{key}", *also))


# Limits are several times the sizes of public models, so that no absurd size is built.
LAYERS, EXPERTS, HEADS, WIDTH = 1024, 8192, 4096, 2**20
MAX_POSITION = 2**31 - 1  # positions are int32
EXPERTS_NAMES = ("n_routed_experts", "num_local_experts")  # DeepSeek's, Mixtral's
TOP_K_NAMES = ("num_experts_per_token", "moe_topk", "moe_router_topk")  # the last: Megatron's
THETA_NAMES = (*in_rope("rope_theta"), "rotary_base")  # Megatron's
ROTARY_NAMES = (*in_rope("partial_rotary_factor"), "rotary_percent", "rotary_pct")  # Megatron's, NeoX's
SIZES = (
    Key("vocab_size", whole(1, 2**24), "tokens of the vocabulary", "vocab_size", True),
    Key("hidden_size", whole(1, WIDTH), "width of the model", "hidden_size", True),
    Key("num_hidden_layers", whole(1, LAYERS), "layers, without MTP", "num_layers", True),
    Key("num_attention_heads", whole(1, HEADS), "heads", "num_heads", True),
    Key("num_key_value_heads", whole(0, HEADS), "key and value heads of GQA; 0: as heads"),
    Key("head_dim", whole(1, WIDTH), "dims of a head; missing: hidden_size / num_attention_heads"),
    Key("intermediate_size", whole(1, 2**24), "width of dense FFNs", "ffn_size", True),
    Key("first_k_dense_replace", whole(0, LAYERS), "dense layers", "first_dense_layers", True),
    Key("num_experts", whole(1, EXPERTS), "experts", "num_experts", True, also=EXPERTS_NAMES),
    Key("num_experts_per_tok", whole(1, EXPERTS), "experts of a token", "top_k", True, also=TOP_K_NAMES),
    Key("n_group", whole(0, EXPERTS), "groups of experts; null or 0: one", needed=True),
    Key("topk_group", whole(0, EXPERTS), "groups of a token; null or 0: one", needed=True),
    Key("moe_intermediate_size", whole(1, 2**24), "width of an expert", "expert_ffn_size", True),
    Key("num_shared_experts", whole(0, EXPERTS), "shared experts", also=("n_shared_experts",)),
    Key("moe_shared_expert_intermediate_size", whole(1, 2**24), "width of one; missing: moe_intermediate_size"),
    Key("max_position_embeddings", whole(1, MAX_POSITION), "context in tokens", "max_length", True),
    Key("layer_group_size", whole(1, LAYERS), "layers that a softmax layer closes", "layer_group_size", True, HYBRID),
    Key("group_norm_size", whole(1, HEADS), "groups of the Lightning norm", "num_norm_groups", True, HYBRID),
    Key("q_lora_rank", whole(1, WIDTH), "rank of queries; null: none", "q_lora_rank", False, MLA),
    Key("kv_lora_rank", whole(1, WIDTH), "rank of keys and values", "kv_lora_rank", True, MLA),
    Key("qk_nope_head_dim", whole(1, WIDTH), "dims of a head without rope", "nope_dim", True, MLA),
    Key("qk_rope_head_dim", whole(1, WIDTH), "dims of a head with rope", "rope_dim", True, MLA),
    Key("v_head_dim", whole(1, WIDTH), "dims of a value head", "v_dim", True, MLA),
    Key("num_nextn_predict_layers", whole(0, 16), "MTP modules", "mtp_depth"),
    Key("mtp_shared_depths", whole(0, 16), "depths of one MTP module", "mtp_shared_depths"),  # ours
)
NUMBERS = (
    Key("routed_scaling_factor", above(0, 1e6), "factor on experts' weights", "routed_scale", True),
    Key("rms_norm_eps", above(0, 1), "epsilon of norms", "norm_eps", True),
    Key("initializer_range", above(0, 1e3), "deviation of new weights", "init_std"),
    Key("router_z_loss_coef", at_least(0, 1e6), "weight of the router's z-loss", "z_loss_weight"),
    Key("mtp_loss_scaling_factor", at_least(0, 1e6), "weight of the MTP loss; 0: the recipe's"),
    Key("use_qk_norm", FLAG, "norms of queries and keys", "qk_norm"),
    Key("gqa_qk_norm", FLAG, "those of GQA layers", "gqa_qk_norm"),  # ours
    Key("use_qkv_bias", FLAG, "biases of queries, keys and values", "qkv_bias"),
    Key("use_bias", FLAG, "biases of attention's output", "out_bias"),
    Key("mtp_detached", FLAG, "later depths spare the trunk", "mtp_detached"),  # ours
    Key("slope_layer_offset", one_of(0, -1), "convention of slopes", "slope_layer_offset"),  # ours
    Key("torch_dtype", one_of("bfloat16", "float32", "float16", "float64"), "dtype", "compute_dtype", also=("dtype",)),
)
ORIGINAL_LENGTH = "original_max_position_embeddings"  # some files have it on the top level
ROTARY = (
    Key("rope_theta", above(1, 1e15), "base of the rotary frequencies", "rope_theta", True, also=THETA_NAMES),
    Key("rotary_dim", whole(1, WIDTH), "rotated dims of a head", also=in_rope("rotary_dim")),
    Key("partial_rotary_factor", above(0, 1), "rotated part of a head", also=ROTARY_NAMES),
    _yarn("rope_type", one_of("default", "yarn"), "scaling of rope", *in_rope("type")),
    _yarn("factor", at_least(1, 1e6), "YaRN's factor"),
    _yarn("original_max_position_embeddings", whole(1, MAX_POSITION), "context before YaRN", ORIGINAL_LENGTH),
    _yarn("beta_fast", above(0, 1e6), "YaRN's fast rotations"),
    _yarn("beta_slow", above(0, 1e6), "YaRN's slow rotations"),
    _yarn("mscale", at_least(0, 1e6), "YaRN's mscale"),
    _yarn("mscale_all_dim", at_least(0, 1e6), "YaRN's mscale of the softmax"),
    _yarn("attention_factor", above(0, 1e6), "YaRN's factor on cos and sin"),
)  # fmt: skip
TABLE = SIZES + NUMBERS + ROTARY
KEYS = {key.name: key for key in TABLE}
PLACES = frozenset(place for key in TABLE for place in key.places)
YARN = {  # keys of an object of `ROPE` -> fields of `Yarn`
    "factor": "factor", ORIGINAL_LENGTH: "original_length", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
    "mscale": "mscale", "mscale_all_dim": "mscale_all_dim", "attention_factor": "attention_factor",
}  # fmt: skip


# Allowed values of other keys, which belong to this or a neighbouring family and would change the computation.
def nothing(*more: Any) -> Kind:
    """null, false, 0, an empty list, object or string, or one of `more`."""
    extra = one_of(*more) if more else None
    expected = "null, false or 0" + (f", or {extra.expected}" if extra else "") + ": nothing else is computed"
    return Kind(lambda v: not v or (extra is not None and extra.accepts(v)), expected)


def only(*values: Any) -> Kind:
    """null or one of some values."""
    kind = one_of(*values)
    return Kind(lambda v: v is None or kind.accepts(v), f"{kind.expected}: nothing else is computed")


ONE = Kind(lambda v: v is None or (_is_number(v) and v == 1), "1: nothing else is computed")
OFF = (
    # Attention of neighbouring families: windows, sinks, gates, other linear attention, scales of scores.
    "attention_bias", "attn_output_gate", "use_gated_attention", "gated_attention", "use_output_gate",
    "attention_sink_bias", "add_swa_attention_sink_bias", "attention_sinks", "attention_chunk_size", "use_swa",
    "use_sliding_window", "sliding_window_size", "sliding_window_pattern", "alibi", "use_alibi", "attention_scale",
    "attention_multiplier", "query_pre_attn_scalar", "attn_logit_softcapping", "attn_logit_softcap",
    "attention_value_scale", "linear_attn_config", "linear_conv_kernel_dim", "linear_num_key_heads",
    "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim", "attn_type_list",
    "full_attention_interval", "hybrid_layer_pattern", "hybrid_override_pattern", "no_rope_layers",
    "no_rope_layer_interval", "nope_layer_interval", "num_kv_shared_layers", "use_sparse_attention",
    "sparse_attention_config", "sparse_config", "mrope_section", "linear_silu", "use_linear_silu", "use_linear_gqa",
    "multi_gate", "value_norm", "use_mla_nope", "use_kda_lora", "mtp_use_kda", "rotary_interleaved",
    # Norms, head and residual stream.
    "norm_head", "norm_softmax", "tie_word_embeddings", "final_logit_softcapping", "final_logit_softcap",
    "logit_softcap", "scale_depth", "dim_model_base", "postnorm", "use_post_norm", "post_norm", "sandwich_norm",
    "parallel_attn", "use_parallel_residual", "parallel_residual", "layernorm_zero_centered", "zero_centered_norm",
    "layernorm_zero_centered_gamma", "layernorm_1p", "use_nGPT",
    # FFN and experts.
    "mlp_bias", "moe_bias", "add_bias_linear", "swiglu_limit", "swiglu_alpha", "expert_swiglu_limit_list",
    "share_expert_swiglu_limit_list", "up_proj_norm", "scale_router_input", "moe_router_pre_softmax",
    "mlp_only_layers", "zero_expert_num", "zero_expert_type", "moe_latent_size", "num_hash_layers",
    "use_shared_expert_gate", "shared_expert_gate", "residual_mlp",
    # Models of more than text.
    "is_encoder_decoder", "add_cross_attention", "vision_config", "audio_config", "text_config",
    "llm_config", "thinker_config",
    "for_nextn_model",  # SGLang's of a draft model
)  # fmt: skip
OFF_PREFIXES = ("moba_", "index_", "mamba_", "ssm_", "hc_", "engram_", "nsa_", "dsa_", "gdn_")
ON = (
    "use_rmsnorm", "rope_interleave", "norm_topk_prob", "moe_router_enable_expert_bias", "linear_rope", "use_rope",
    "moe_renormalize", "use_grouped_topk", "is_causal", "use_expert_bias",
)  # fmt: skip
SCALES = (
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb", "embed_scale",
    "lm_head_multiplier", "key_multiplier", "attention_in_multiplier", "attention_out_multiplier", "residual_scale",
    "attention_output_multiplier", "output_multiplier", "full_attn_alpha_factor", "full_attn_beta_factor",
    "linear_attn_alpha_factor", "linear_attn_beta_factor", "mlp_alpha_factor", "mlp_beta_factor",
    "layernorm_full_attention_alpha", "layernorm_full_attention_beta", "layernorm_linear_attention_alpha",
    "layernorm_linear_attention_beta", "layernorm_mlp_alpha", "layernorm_mlp_beta",
    "rope_ratio", "moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step",
)  # fmt: skip
OTHER_ROPES = ("mrope_section", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "alpha")
SCORES = ("score_function", "scoring_func", "moe_router_activation_func", "moe_router_score_function")
UNREAD: dict[str, Kind] = {
    **dict.fromkeys(OFF, nothing()),
    **dict.fromkeys(ON, only(True)),
    **dict.fromkeys(SCALES, ONE),
    **dict.fromkeys(("hidden_act", "hidden_activation"), only("silu", "swish")),
    **dict.fromkeys(SCORES, only("sigmoid")),
    "topk_method": only("noaux_tc"),
    "router_dtype": only("fp32", "float32"),
    "position_embedding_type": only("rope", "rotary"),
    "norm_type": nothing("rmsnorm", "rms_norm"),
    "normalization": nothing("RMSNorm"),
    "rope_type": nothing("default"),  # on the top level, where no scaling of rope is read
    "router_type": nothing("topN"),
    "qk_norm_type": nothing("per_head"),
    **dict.fromkeys(in_rope("truncate"), only(True)),  # of YaRN's bounds
    **dict.fromkeys((*in_rope("extrapolation_factor"), *in_rope("attn_factor")), ONE),  # vLLM's of YaRN
    **{place: nothing() for key in OTHER_ROPES for place in in_rope(key)},
}
# These keys repeat others and must agree with them.
LINEAR_HEADS = ("num_kv_heads_for_linear_attn", "linear_key_value_heads", "num_linear_key_value_heads")
MIXER_LISTS = ("layer_types", "layers_block_type", "_layers_block_type")
FFN_LIST = "mlp_layer_types"
REPEATED = (*LINEAR_HEADS, *MIXER_LISTS, FFN_LIST, "qk_head_dim", "full_attention_type")
DROPOUTS = ("attention_dropout", "embedding_dropout", "output_dropout", "hidden_dropout", "router_jitter_noise")

# Settings of generation and of old tasks, which transformers 4 keeps in every config and some tools write.
TRANSFORMERS_4 = (
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "cross_attention_hidden_size",
    "tie_encoder_decoder", "finetuning_task", "task_specific_params", "tokenizer_class", "prefix", "sep_token_id",
    "decoder_start_token_id", "tf_legacy_loss", "use_bfloat16",
)  # fmt: skip

QUANTISATION = ("quantization_config", "compression_config", "quantization")  # the last: MLX
# Keys of the releases and of transformers that do not change the computation.
HARMLESS = frozenset((
    *ROPE, *QUANTISATION, "architectures", "model_type", "auto_map", "transformers_version", "_name_or_path",
    "_attn_implementation", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "torchscript", "pruned_heads", "is_decoder",
    "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "pretraining_tp", "ep_size",
    "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "sliding_window", "max_window_layers", "attn_implementation",
    "_attn_implementation_autoset", "_attn_implementation_internal", "_experts_implementation", "_commit_hash",
    "unsloth_fixed", "unsloth_version", "linear_backend", *LING_3_MARKS, *REPEATED, *DROPOUTS, *TRANSFORMERS_4,
))  # fmt: skip
