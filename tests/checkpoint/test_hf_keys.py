"""Every key of config.json has a type and a range, and what is not read asks for nothing else or is named."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.checkpoint import from_hf, to_hf
from ling_jax.checkpoint.hf_keys import HARMLESS, TABLE, UNREAD
from tests.helpers.hf_configs import BASES, FIXTURE, GQA, PLAIN, YARN, json_values, refusal, without


@pytest.mark.parametrize("key", [key.name for key in TABLE if key.needed])
@pytest.mark.parametrize("left", ["missing", "null"])
def test_a_missing_key_is_named_with_the_architecture(key, left):
    if left == "null" and key in ("n_group", "topk_group"):
        return  # one group
    hf = without(FIXTURE, key) | ({} if left == "missing" else {key: None})
    assert f"{key} is missing; BailingMoeV2_5ForCausalLM needs it" in refusal(hf)


SIZES = [key.name for key in TABLE if key.kind.expected.startswith("a whole number") and "." not in key.name]
FLOATS = [key.name for key in TABLE if key.kind.is_float and "." not in key.name]
FLAGS = [key.name for key in TABLE if key.kind.expected == "true or false"]
NO_SIZES = ["64", [64], {"a": 64}, True, 64.0, 0.5, -1, 10**9 * 10, 1e9, 10**400, 10**5000, math.nan, math.inf]
NO_FLOATS = ["1.0", [1.0], {}, True, math.nan, math.inf, -math.inf, -1, 10**400, -(10**5000), 1e300]


@pytest.mark.parametrize("key", SIZES)
def test_a_size_is_a_whole_number_in_its_range(key):
    for value in NO_SIZES:
        message = refusal(PLAIN | {key: value})
        assert f"{key} is " in message and "expected a whole number from " in message, message


@pytest.mark.parametrize("key", FLOATS)
def test_a_number_is_finite_and_in_its_range(key):
    for value in NO_FLOATS:
        message = refusal(PLAIN | {key: value})
        assert f"{key} is " in message and "expected a number " in message, message


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps", "routed_scaling_factor", "partial_rotary_factor"])
def test_a_number_that_is_0_is_refused_where_nothing_could_be_computed(key):
    assert f"{key} is 0; expected a number above" in refusal(PLAIN | {key: 0})


@pytest.mark.parametrize("key", FLAGS)
def test_a_flag_is_true_or_false(key):
    for value in ("false", "true", 0, 1, 0.0, [], {}):
        assert f"{key} is {value!r}; expected true or false" in refusal(FIXTURE | {key: value})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("torch_dtype", ("int8", "float8_e4m3fn", "auto", 16, ["bfloat16"], True)),
        ("slope_layer_offset", (1, -2, 0.0, "0", False)),
        ("rope_scaling", ([], ["yarn"], "yarn", 2, True, 0)),
        ("rope_parameters", ([], ["yarn"], "yarn", 2, True, 0)),
        ("layer_types", ("full_attention", {}, 4, True)),
    ],
)
def test_another_type_or_name_is_refused(key, values):
    for value in values:
        shown = json.dumps(value) if isinstance(value, bool) else repr(value)
        assert f"{key} is {shown}; expected" in refusal(FIXTURE | {key: value})


def test_whole_numbers_do_where_a_fraction_may_stand():
    config = from_hf(PLAIN | {"rope_theta": 600000, "routed_scaling_factor": 2})
    assert (config.rope_theta, config.routed_scale) == (600000.0, 2.0)
    assert isinstance(config.rope_theta, float) and isinstance(config.routed_scale, float)


def test_absurd_sizes_are_refused_at_once():
    start = time.monotonic()
    for key, value in (
        ("num_experts", 10**9), ("num_hidden_layers", 10**7), ("num_nextn_predict_layers", 10**6),
        ("vocab_size", 10**12), ("num_attention_heads", 10**9), ("first_k_dense_replace", 10**7),
        ("num_shared_experts", 10**9), ("layer_group_size", 10**9),
    ):  # fmt: skip
        assert f"{key} is {value}; expected a whole number from" in refusal(PLAIN | {key: value})
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(first_k_dense_replace=5), r"first_k_dense_replace is 5; expected at most num_hidden_layers (4)"),
        (dict(group_norm_size=3), "group_norm_size is 3; expected a divisor of num_attention_heads (4)"),
        (dict(n_group=5), "n_group is 5; expected a divisor of num_experts (16)"),
        (dict(topk_group=5), "topk_group is 5; expected a whole number from 1 to n_group (4)"),
        (dict(topk_group=0), "topk_group is 0; expected a whole number from 1 to n_group (4)"),
        (dict(num_experts_per_tok=9), "num_experts_per_tok is 9; expected at most 8, the experts of topk_group (2)"),
        (dict(qk_rope_head_dim=7), "qk_rope_head_dim is 7; expected an even number"),
        (dict(rotary_dim=7), "rotary_dim is 7; expected an even number of rotated dims within head_dim (16)"),
        (dict(rotary_dim=18), "rotary_dim is 18; expected an even number of rotated dims within head_dim (16)"),
        (dict(partial_rotary_factor=0.2), "partial_rotary_factor is 0.2; expected an even number of rotated dims"),
        (dict(head_dim=None, hidden_size=66), "head_dim is missing; num_attention_heads 4 does not divide 66"),
        (dict(num_kv_heads_for_linear_attn=2), "num_kv_heads_for_linear_attn is 2; expected null, 0 or num_attention"),
        (dict(linear_key_value_heads=2), "linear_key_value_heads is 2; expected null, 0 or num_attention_heads (4)"),
        (dict(qk_head_dim=16), "qk_head_dim is 16; expected null or qk_nope_head_dim + qk_rope_head_dim (24)"),
        (dict(full_attention_type="gqa"), "full_attention_type is 'gqa'; expected 'mla'"),
        (dict(mlp_layer_types=["sparse"] * 4), "mlp_layer_types[0] is 'sparse'; expected 'dense', as first_k_dense"),
        (
            dict(mlp_layer_types=["dense"]),
            "mlp_layer_types is ['dense']; expected a list of num_hidden_layers (4)",
        ),
        (dict(layers_block_type=["attention"] * 4), "layers_block_type[0] is 'attention'; expected 'linear_attention'"),
        (dict(num_kv_heads_for_linear_attn="4"), "num_kv_heads_for_linear_attn is '4'; expected null, 0 or num_att"),
        (dict(mtp_shared_depths=3, num_nextn_predict_layers=2), "mtp_shared_depths is 3; expected 0, since num_nextn"),
    ],
)
def test_numbers_that_do_not_fit_together_are_named(keys, message):
    assert message in refusal(FIXTURE | keys)


def test_key_and_value_heads_divide_the_heads():
    assert "num_key_value_heads is 3; expected a divisor of num_attention_heads (4)" in refusal(
        GQA | {"num_key_value_heads": 3}
    )
    assert from_hf(PLAIN | {"num_key_value_heads": 3}).num_kv_heads == 0  # MLA has none


@pytest.mark.parametrize("one", [0, None, 1])
@pytest.mark.parametrize("base", BASES)
def test_no_groups_of_experts_are_one_group(base, one):
    hf = BASES[base] | {"n_group": one, "topk_group": one}
    config = from_hf(hf)
    assert (config.num_expert_groups, config.top_groups) == (1, 1)
    assert {key: to_hf(config)[key] for key in ("n_group", "topk_group")} == {"n_group": one, "topk_group": one}


rope_objects = st.dictionaries(
    st.sampled_from(sorted({place.split(".")[1] for key in TABLE for place in key.places if "." in place})),
    json_values,
    max_size=3,
)
any_key = st.sampled_from(
    sorted({*(p for key in TABLE for p in key.places), *UNREAD, *HARMLESS, *FIXTURE, "moba_topk"})
)


@given(
    st.sampled_from(sorted(BASES)), st.dictionaries(any_key, json_values | st.just(10**5000) | rope_objects, max_size=3)
)
def test_no_json_gives_anything_but_a_config_or_one_line(base, changes):
    try:
        config = from_hf(BASES[base] | changes)
    except ValueError as error:
        assert str(error).startswith("config.json: ") and str(error).isprintable()  # one line
    else:
        assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize("hf", [[], "text", None, 3, [FIXTURE]])
def test_what_is_no_object_is_refused(hf):
    with pytest.raises(ValueError, match=r"config.json is .*; expected an object"):
        from_hf(hf)


def test_a_value_nested_beyond_what_python_can_follow_is_refused():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for key in ("vocab_size", "rope_parameters", "norm_head", "some_key"):
        assert f"{key} is [[[" in refusal(FIXTURE | {key: nested})
    assert "some_key is a number of thousands of digits" in refusal(FIXTURE | {"some_key": 10**5000})


# Keys that are not read


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "keys",
    [
        dict(moba_topk=12), dict(moba_block_size=4096), dict(moba_anything=True),
        dict(layer_types=["sliding_attention"] * 4), dict(layer_types=["linear_attention"] * 4),
        dict(layer_types=["full_attention"] * 3), dict(layer_types=[["full_attention"]] * 4),
        dict(use_sliding_window=True), dict(sliding_window=4096), dict(norm_head=True), dict(use_rmsnorm=False),
        dict(attention_bias=True), dict(mlp_bias=True), dict(hidden_act="gelu"), dict(score_function="softmax"),
        dict(scoring_func="softmax"), dict(topk_method="greedy"), dict(norm_topk_prob=False), dict(linear_silu=True),
        dict(rope_interleave=False), dict(tie_word_embeddings=True), dict(tie_word_embeddings="false"),
        dict(moe_router_enable_expert_bias=False), dict(router_dtype="bf16"), dict(norm_softmax=True),
        # DeepSeek, Qwen, MiniMax, Kimi, GLM and others
        dict(index_topk=2048), dict(moe_layer_freq=2), dict(decoder_sparse_step=2), dict(mlp_only_layers=[0]),
        dict(attn_output_gate=True), dict(linear_conv_kernel_dim=4), dict(linear_attn_config={"kda_layers": [1]}),
        dict(full_attn_alpha_factor=3.56), dict(layernorm_mlp_alpha=2.0), dict(qk_norm_type="per_layer"),
        dict(attn_type_list=[0, 1]), dict(final_logit_softcapping=30.0), dict(attn_logit_softcapping=50.0),
        dict(embedding_multiplier=12), dict(residual_multiplier=0.22), dict(logits_scaling=8), dict(scale_emb=12),
        dict(normalization="LayerNorm"), dict(add_bias_linear=True), dict(moe_router_score_function="softmax"),
        dict(rotary_interleaved=True), dict(rope_type="yarn"), dict(rope_ratio=8), dict(expert_swiglu_limit_list=[7.0]),
        dict(value_norm=True), dict(use_mla_nope=True), dict(router_type="MultiRouter"), dict(llm_config={"a": 1}),
        dict(scale_depth=1.4), dict(attention_chunk_size=8192), dict(swiglu_limit=7.0), dict(vision_config={"a": 1}),
    ],
    ids=lambda keys: "-".join(map(str, next(iter(keys.items())))) if isinstance(keys, dict) else keys,
)  # fmt: skip
def test_what_asks_for_another_computation_is_refused_by_name(base, keys):
    (name,) = keys
    assert name in refusal(BASES[base] | keys)


@pytest.mark.parametrize(
    "keys",
    [
        dict(moba_topk=0), dict(moba_topk=None), dict(use_sliding_window=False, sliding_window=4096),
        dict(sliding_window=None), dict(norm_head=False), dict(use_rmsnorm=True), dict(attention_bias=False),
        dict(hidden_act="silu"), dict(moe_layer_freq=1), dict(residual_multiplier=1.0), dict(attention_dropout=0.0),
        dict(mlp_only_layers=[]), dict(final_logit_softcapping=None), dict(max_window_layers=28),
        dict(quantization_config={"quant_method": "fp8"}), dict(eos_token_id=[1, 2]), dict(auto_map={"a": "b.c"}),
        dict(layer_types=["linear_attention"] * 3 + ["full_attention"]),
        dict(layers_block_type=["linear_attention"] * 3 + ["attention"]), dict(full_attention_type="mla"),
        dict(mlp_layer_types=["dense"] + ["sparse"] * 3), dict(qk_head_dim=24), dict(num_linear_key_value_heads=4),
        dict(temperature=1.0, top_k=50, max_length=20, tie_encoder_decoder=False, tf_legacy_loss=False),
        dict(_attn_implementation_autoset=True, unsloth_fixed=True, linear_backend="seg_la", for_nextn_model=False),
        dict(rope_type="default", normalization="RMSNorm"),
        dict(short_conv_kernel_size=None, use_mla_nope=False, expert_swiglu_limit_list=None),
    ],
    ids=lambda keys: next(iter(keys)),
)  # fmt: skip
def test_what_asks_for_nothing_else_passes_without_a_word(keys, capsys):
    assert from_hf(FIXTURE | keys) == from_hf(FIXTURE)
    assert capsys.readouterr().err == ""


def test_layers_that_are_all_softmax_may_be_listed():
    types = {"layer_types": ["full_attention"] * 4}
    assert from_hf(GQA | types) == from_hf(GQA)
    assert "layer_types[0] is 'full_attention'; expected 'linear_attention'" in refusal(PLAIN | types)


def test_a_2_0_file_has_no_groups_of_layers():
    assert "layer_group_size is 8; expected null or 1" in refusal(GQA | {"layer_group_size": 8})
    assert from_hf(GQA | {"layer_group_size": 1}) == from_hf(GQA)


def test_one_line_names_the_keys_that_are_not_read(capsys):
    strange = {"foo": 1, "two\nlines": 2, "": 3, "attention_dropout": 0.1, "rope_scaling": YARN | {"bar": 1}}
    for _ in range(2):  # programs read a config more than once
        assert from_hf(PLAIN | strange) == from_hf(PLAIN | {"rope_scaling": YARN})
    (line,) = capsys.readouterr().err.splitlines()
    wanted = r"foo, 'two\nlines', '', attention_dropout, rope_scaling.bar"
    assert line == f"warning: config.json: keys that are not read: {wanted}"
    assert to_hf(from_hf(PLAIN | strange)).items() >= strange.items()


def test_a_line_on_thousands_of_unread_keys_can_still_be_read(capsys):
    from_hf(FIXTURE | {f"key_{i}": i for i in range(3000)})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("key_48, key_49, … and 2950 more")


def test_the_name_of_another_architecture_is_whole():
    name = "BailingMM2NativeForConditionalGeneration"
    assert f"architectures is ['{name}'], which is not supported" in refusal(FIXTURE | {"architectures": [name]})
