"""config.json is read as its file means it, or refused in one line; no key is lost on the way through."""

import dataclasses
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax import model, spec
from ling_jax.checkpoint import from_hf, orbax, to_hf
from ling_jax.checkpoint.hf_keys import ARCHITECTURES, HARMLESS, QUANTISATION, ROPE, TABLE, UNREAD
from ling_jax.config import MODELS, ModelConfig, Yarn, model_config
from ling_jax.migrate.convert import form_config
from ling_jax.train.config import differences
from tests.checkpoint.releases import COUNTS, FP8, RELEASES
from tests.conftest import FIXTURES
from tests.tiny import FAMILIES, tiny_config

FIXTURE = json.loads((FIXTURES / "v25_yarn_mscale" / "config.json").read_text())  # of 2.6
PLAIN = FIXTURE | {"rope_scaling": None}
GQA = PLAIN | {"architectures": ["BailingMoeV2ForCausalLM"], "num_key_value_heads": 2}
LINEAR = GQA | {"architectures": ["BailingMoeLinearV2ForCausalLM"]}
BASES = {"2.6": PLAIN, "2.0": GQA, "linear-2.0": LINEAR}
for key in ("layer_group_size", "group_norm_size"):
    GQA.pop(key)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# Fields that config.json does not hold; they come back as their defaults.
HOW_IT_IS_RUN = dict(remat="full", scan_layers=True, lightning_chunk=None, loss_chunk=128)


def without(hf, *keys):
    return {key: value for key, value in hf.items() if key not in keys}


def refusal(hf):
    """The one line of a refusal."""
    with pytest.raises(ValueError, match=r"\Aconfig\.json: .*\Z") as raised:
        from_hf(hf)
    message = str(raised.value)
    assert len(message.splitlines()) == 1 and message.isprintable() and len(message) < 700
    return message


# Releases


@pytest.mark.parametrize("name", RELEASES)
def test_configs_of_releases_have_the_published_parameters(name, capsys):
    leaves = spec.named_leaves(model.model_spec(from_hf(RELEASES[name])))
    sizes = {mtp: sum(math.prod(p.shape) for n, p in leaves.items() if n.startswith("mtp/") == mtp) for mtp in (0, 1)}
    assert tuple(f"{sizes[mtp] / 1e9:.3f}" for mtp in (0, 1)) == COUNTS[name]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", RELEASES)
def test_configs_of_releases_lose_no_key(name):
    hf = without(json.loads(json.dumps(RELEASES[name])), *QUANTISATION)
    assert to_hf(from_hf(RELEASES[name])) == hf | {"slope_layer_offset": 0}


def test_configs_of_the_numbers_lose_no_key(golden):
    folders = sorted(path.parent for path in golden.glob("*/config.json"))
    assert len(folders) == 7
    for folder in folders:
        hf = json.loads((folder / "config.json").read_text())
        assert to_hf(from_hf(hf)) == hf | {"slope_layer_offset": 0}, folder.name


@pytest.mark.parametrize("name", MODELS)
def test_named_models_survive_config_json(name):
    hf = json.loads(json.dumps(to_hf(model_config(name))))
    assert from_hf(hf) == model_config(name, **HOW_IT_IS_RUN)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "fields",
    [
        dict(shared_ffn_size=0),
        dict(shared_ffn_size=16, mtp_depth=2, qkv_bias=True, out_bias=True, qk_norm=False),
        dict(rope_scaling=Yarn(4.0, 32, beta_fast=16.0, mscale=0.7, mscale_all_dim=0.5, attention_factor=1.2)),
        dict(slope_layer_offset=-1, z_loss_weight=3.5e-6, mtp_loss_weight=0.2, init_std=0.01, norm_eps=1e-3),
    ],
    ids=["no shared expert", "biases", "yarn", "numbers"],
)
def test_every_field_survives_config_json(family, fields):
    if family == "2.0":
        fields.pop("slope_layer_offset", None)
    config = dataclasses.replace(tiny_config(family, **fields), **HOW_IT_IS_RUN)
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


def test_config_json_holds_every_field_of_the_model():
    config = model_config("tiny-2.6")
    changed = dict(
        vocab_size=77, hidden_size=64, num_layers=3, num_heads=8, head_dim=16, softmax="gqa", layer_group_size=2,
        num_kv_heads=2, num_norm_groups=2, rotary_dim=8, q_lora_rank=8, kv_lora_rank=8, nope_dim=4, rope_dim=4,
        v_dim=8, ffn_size=8, first_dense_layers=2, num_experts=16, top_k=1, num_expert_groups=4, top_groups=2,
        expert_ffn_size=8, shared_ffn_size=8, routed_scale=1.0, rope_theta=5.0, rope_scaling=Yarn(2.0, 8),
        max_length=9, norm_eps=1e-3, qk_norm=False, gqa_qk_norm=False, qkv_bias=True, out_bias=True, mtp_depth=0,
        mtp_shared_depths=3, mtp_detached=True, mtp_loss_weight=0.5, z_loss_weight=0.5,
        slope_layer_offset=-1, init_std=0.5, compute_dtype="bfloat16",
    )  # fmt: skip
    fields = {field.name for field in dataclasses.fields(ModelConfig) if field.compare}
    assert changed.keys() | HOW_IT_IS_RUN.keys() == fields
    for field, value in changed.items():
        fields = {field: value} | (dict(num_kv_heads=4) if field == "softmax" else {})
        assert to_hf(dataclasses.replace(config, **fields)) != to_hf(config), field


def test_config_json_of_another_family_is_an_error():
    with pytest.raises(ValueError, match="no Hugging Face architecture has softmax 'mla' with layer_group_size 1"):
        to_hf(tiny_config(layer_group_size=1))


# Architectures


@pytest.mark.parametrize("architecture", ["BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"])
def test_ling_3_is_known_by_its_keys(architecture):
    hf = FIXTURE | {"architectures": [architecture], "kda_lower_bound": -5.0}
    assert hf["model_type"] == "bailing_hybrid"
    message = refusal(hf)
    assert f"architectures is ['{architecture}'] with kda_lower_bound, which is Ling 3.0" in message
    assert "one of BailingMoeV2_5ForCausalLM, " in message


def test_ling_3_is_known_by_its_name():
    assert "which is Ling 3.0" in refusal(FIXTURE | {"architectures": ["BailingMoeV3ForCausalLM"]})


@pytest.mark.parametrize("key", ["kda_lower_bound", "kda_num_heads", "kda_use_gate"])
def test_any_key_of_ling_3_marks_it(key):
    assert key in refusal(FIXTURE | {key: 1})


def test_the_open_ports_name_of_2_6_is_2_6():
    hf = FIXTURE | {"architectures": ["BailingHybridForCausalLM"]}
    assert from_hf(hf) == from_hf(FIXTURE)
    assert to_hf(from_hf(hf))["architectures"] == ["BailingHybridForCausalLM"]


@pytest.mark.parametrize("key", ["kv_lora_rank", "layer_group_size"])
def test_the_open_ports_name_on_another_model_is_not_supported(key):
    message = refusal(without(FIXTURE, key) | {"architectures": ["BailingHybridForCausalLM"]})
    assert key in message and "not supported" in message


def test_another_architecture_is_answered_with_the_supported():
    message = refusal(FIXTURE | {"architectures": ["LlamaForCausalLM"]})
    assert "architectures is ['LlamaForCausalLM'], which is not supported" in message
    assert all(name in message for name in ARCHITECTURES)


@pytest.mark.parametrize("architectures", ["BailingMoeV2_5ForCausalLM", {"B": 1}, [], [None], [["B"]], 3, True])
def test_architectures_are_a_list_of_names(architectures):
    message = refusal(FIXTURE | {"architectures": architectures})
    assert "architectures is " in message and "expected a list of names with one of BailingMoeV2_5" in message


@pytest.mark.parametrize("hf", [without(FIXTURE, "architectures"), FIXTURE | {"architectures": None}])
def test_a_model_type_alone_says_no_architecture(hf):
    """`bailing_hybrid` is 2.6 and 3.0, `bailing_moe` 1.0 and 2.0."""
    assert "architectures is missing; expected a list of names" in refusal(hf)


# Types and ranges


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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
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


# Rope


def rope_5(hf, *keys, **more):
    """In transformers 5's form: `keys` of the top level inside `rope_parameters`."""
    inside = {key: hf[key] for key in keys}
    return without(hf, *keys, "rope_scaling") | {"rope_parameters": {"rope_type": "default"} | inside | more}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "keys", [("rope_theta", "partial_rotary_factor"), ("partial_rotary_factor",), ("rope_theta",), ()]
)
@pytest.mark.parametrize("yarn", [{}, YARN], ids=["plain", "yarn"])
def test_the_form_of_transformers_5_is_the_same_model(base, keys, yarn):
    hf = BASES[base] | {"rope_scaling": yarn or None}
    assert from_hf(rope_5(hf, *keys, **yarn)) == from_hf(hf)


def test_the_flash_release_is_served_at_256k_by_yarn_in_rope_scaling():
    """As its card has it: all of the rope in one object."""
    release = RELEASES["Ling-2.6-flash"]
    scaling = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 6e6, "partial_rotary_factor": 0.5}
    scaling |= {"original_max_position_embeddings": 131072}
    config = from_hf(without(release, "rope_theta", "partial_rotary_factor") | {"rope_scaling": scaling})
    assert config == dataclasses.replace(from_hf(release), rope_scaling=Yarn(2.0, 131072))
    assert to_hf(config)["rope_scaling"] == scaling


def test_both_forms_may_repeat_each_other():
    hf = FIXTURE | {"rope_parameters": FIXTURE["rope_scaling"] | {"rope_theta": 6000000, "partial_rotary_factor": 0.5}}
    assert from_hf(hf) == from_hf(FIXTURE)
    assert to_hf(from_hf(hf)) == hf | {"slope_layer_offset": 0}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (
            {"rope_parameters": {"rope_theta": 5e6}},
            ("rope_theta is 6000000.0", "rope_parameters.rope_theta is 5000000.0"),
        ),
        ({"rope_scaling": {"rope_theta": 5e6}}, ("rope_theta is 6000000.0", "rope_scaling.rope_theta is 5000000.0")),
        (
            {"rope_parameters": {"partial_rotary_factor": 1.0}},
            ("partial_rotary_factor is 0.5", "rope_parameters.partial_rotary_factor is 1.0"),
        ),
        (
            {"rope_parameters": YARN | {"factor": 2.0}},
            ("rope_scaling.factor is 4.0", "rope_parameters.factor is 2.0"),
        ),
        (
            {"rope_parameters": {"rope_type": "default"}},
            ("rope_scaling.rope_type is 'yarn'", "rope_parameters.rope_type is 'default'"),
        ),
        (
            {"rope_scaling": YARN | {"type": "default"}},
            ("rope_scaling.rope_type is 'yarn'", "rope_scaling.type is 'default'"),
        ),
        ({"dtype": "bfloat16"}, ("torch_dtype is 'float32'", "dtype is 'bfloat16'")),
        ({"n_routed_experts": 8}, ("num_experts is 16", "n_routed_experts is 8")),
        ({"n_shared_experts": 2}, ("num_shared_experts is 1", "n_shared_experts is 2")),
    ],
)
def test_two_values_of_one_thing_are_both_named(keys, named):
    message = refusal(FIXTURE | keys)
    assert all(part in message for part in named), message


def test_every_layer_has_the_same_rope():
    per_kind = {"full_attention": YARN, "linear_attention": {"rope_type": "default"}}
    assert "rope_parameters.full_attention is {" in refusal(PLAIN | {"rope_parameters": per_kind})


@pytest.mark.parametrize(
    "scaling", [None, {}, {"rope_type": "default", "rope_theta": 6e6}, {"type": "default"}, {"rope_theta": 6e6}]
)
@pytest.mark.parametrize("name", ROPE)
def test_rope_scaling_that_only_repeats_the_rope_means_none(name, scaling):
    assert from_hf(PLAIN | {name: scaling}).rope_scaling is None


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("name", ROPE)
def test_yarn_is_found_under_all_its_names(name, key):
    scaling = {key: "yarn", "factor": 4, "original_max_position_embeddings": 32, "mscale": None}
    assert from_hf(PLAIN | {name: scaling}).rope_scaling == Yarn(4.0, 32)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "linear", "factor": 2.0}, "rope_scaling.type is 'linear'; expected 'default' or 'yarn'"),
        ({"type": "yarn"}, "rope_scaling.type is 'yarn' without factor; expected a number from 1"),
        (
            {"type": "yarn", "factor": 2.0},
            "is 'yarn' without original_max_position_embeddings; expected a whole number",
        ),
        ({"factor": 2.0}, "rope_scaling.factor is 2.0; expected none, or rope_type 'yarn'"),
        ({"type": "default", "factor": 2.0}, "rope_scaling.factor is 2.0; expected none, or rope_type 'yarn'"),
        (YARN | {"factor": "2"}, "rope_scaling.factor is '2'; expected a number from 1"),
        (YARN | {"factor": -2}, "rope_scaling.factor is -2; expected a number from 1"),
        (YARN | {"factor": True}, "rope_scaling.factor is true; expected a number from 1"),
        (YARN | {"beta_fast": 0}, "rope_scaling.beta_fast is 0; expected a number above 0"),
        (YARN | {"attention_factor": math.nan}, "rope_scaling.attention_factor is nan; expected a number above 0"),
        (
            YARN | {"original_max_position_embeddings": 32.0},
            "original_max_position_embeddings is 32.0; expected a whole",
        ),
        (YARN | {"truncate": False}, "rope_scaling.truncate is false; expected true"),
    ],
)
def test_rope_scaling_that_does_not_run_is_an_error(scaling, message):
    assert message in refusal(FIXTURE | {"rope_scaling": scaling})


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (dict(rotary_dim=6, partial_rotary_factor=0.25), 6),
        (dict(rotary_dim=8, partial_rotary_factor=None), 8),
        (dict(rotary_dim=None, partial_rotary_factor=0.25), 4),
        (dict(partial_rotary_factor=None, rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.75}), 12),
    ],
)
def test_rotary_dim_wins_over_the_factor(keys, wanted):
    assert from_hf(FIXTURE | keys).rotary_dim == wanted


def test_a_factor_that_does_not_count_is_named(capsys):
    from_hf(GQA | dict(rotary_dim=6))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: config.json: keys that are not read: partial_rotary_factor 0.5 (rotary_dim 6 wins)"
    from_hf(GQA | dict(rotary_dim=8))
    assert capsys.readouterr().err == ""


def test_layers_with_more_rotated_dims_than_others_are_named(capsys):
    """The model can do it, the official code cannot: most likely the file is wrong."""
    from_hf(FIXTURE | dict(partial_rotary_factor=1.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert "16 dims of Lightning heads are rotated, and qk_rope_head_dim is 8" in line


def test_without_a_part_all_of_a_head_is_rotated_as_in_the_official_code():
    """With MLA that code has one table for both kinds of layers, which then must be as wide as each."""
    assert from_hf(without(GQA, "partial_rotary_factor")).rotary_dim == 16
    assert "partial_rotary_factor is missing, and so is rotary_dim" in refusal(
        without(FIXTURE, "partial_rotary_factor")
    )
    assert from_hf(without(FIXTURE, "partial_rotary_factor") | {"qk_rope_head_dim": 16}).rotary_dim == 16


# Values that follow from others


@pytest.mark.parametrize("rank", [None, 24])
def test_queries_have_a_latent_only_with_q_lora_rank(rank):
    config = from_hf(FIXTURE | {"q_lora_rank": rank})
    assert config.q_lora_rank == rank
    names = spec.named_leaves(model.model_spec(config))
    assert any(name.endswith("mixer/q_a") for name in names) == (rank is not None)


@pytest.mark.parametrize("heads", [None, 0, FIXTURE["num_attention_heads"]])
def test_lightning_layers_have_all_heads(heads):
    assert from_hf(FIXTURE | {"num_kv_heads_for_linear_attn": heads}) == from_hf(FIXTURE)


def test_head_dim_defaults_to_a_share_of_the_width():
    assert from_hf(without(FIXTURE, "head_dim")).head_dim == 64 // 4


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (dict(num_shared_experts=2), 2 * FIXTURE["moe_intermediate_size"]),
        (dict(num_shared_experts=2, moe_shared_expert_intermediate_size=24), 48),
        (dict(num_shared_experts=0), 0),
        (dict(num_shared_experts=None), 0),
    ],
)
def test_shared_experts_are_one_wide_one(keys, wanted):
    assert from_hf(FIXTURE | keys).shared_ffn_size == wanted


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (dict(torch_dtype="bfloat16"), "bfloat16"),
        (dict(torch_dtype=None, dtype="float32"), "float32"),
        (dict(torch_dtype=None), "bfloat16"),
    ],
)
def test_compute_dtype_is_the_files(keys, wanted):
    assert from_hf(FIXTURE | keys).compute_dtype == wanted


@pytest.mark.parametrize(("weight", "wanted"), [(0, 0.1), (0.0, 0.1), (None, 0.1), (0.3, 0.3)])
def test_an_mtp_weight_of_0_says_nothing_of_training(weight, wanted):
    config = from_hf(FIXTURE | {"num_nextn_predict_layers": 1, "mtp_loss_scaling_factor": weight})
    assert config.mtp_loss_weight == wanted
    assert to_hf(config)["mtp_loss_scaling_factor"] == weight


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
    strange = {"foo": 1, "two\nlines": 2, "attention_dropout": 0.1, "rope_scaling": YARN | {"bar": 1}}
    for _ in range(2):  # programs read a config more than once
        assert from_hf(PLAIN | strange) == from_hf(PLAIN | {"rope_scaling": YARN})
    (line,) = capsys.readouterr().err.splitlines()
    wanted = r"foo, 'two\nlines', attention_dropout, rope_scaling.bar"
    assert line == f"warning: config.json: keys that are not read: {wanted}"
    assert to_hf(from_hf(PLAIN | strange)).items() >= strange.items()


# Exports


def test_changed_fields_take_the_place_of_the_files_keys():
    config = from_hf(RELEASES["Ling-2.6-1T"])
    fields = dict(vocab_size=200, mtp_depth=0, compute_dtype="float32", rope_theta=1e4, slope_layer_offset=-1)
    written = to_hf(dataclasses.replace(config, **fields))
    wanted = dict(
        vocab_size=200, num_nextn_predict_layers=0, torch_dtype="float32", rope_theta=1e4, slope_layer_offset=-1
    )
    assert written == without(RELEASES["Ling-2.6-1T"], *QUANTISATION) | wanted


def test_the_form_of_transformers_5_stays():
    hf = rope_5(PLAIN, "rope_theta", "partial_rotary_factor") | {"dtype": "float32"}
    del hf["torch_dtype"]
    config = from_hf(hf)
    assert to_hf(config) == hf | {"slope_layer_offset": 0}
    changed = dataclasses.replace(config, rope_theta=5e4, rope_scaling=Yarn(2.0, 512), compute_dtype="bfloat16")
    rope = {"rope_type": "yarn", "rope_theta": 5e4, "partial_rotary_factor": 0.5, "factor": 2.0}
    rope |= {"original_max_position_embeddings": 512, "beta_fast": 32.0, "beta_slow": 1.0}
    written = to_hf(changed)
    assert written == hf | {"slope_layer_offset": 0, "dtype": "bfloat16", "rope_parameters": rope}
    assert to_hf(dataclasses.replace(from_hf(written), rope_scaling=None))["rope_parameters"]["rope_type"] == "default"


tiny_fields = st.fixed_dictionaries(
    {},
    optional=dict(
        vocab_size=st.integers(1, 999), hidden_size=st.sampled_from([32, 128]), num_layers=st.integers(2, 9),
        num_heads=st.sampled_from([8, 12]), head_dim=st.sampled_from([16, 80]), rotary_dim=st.sampled_from([2, 8, 14]),
        expert_ffn_size=st.sampled_from([16, 48]), shared_ffn_size=st.sampled_from([0, 16, 32, 49]),
        num_experts=st.sampled_from([16, 64]), top_k=st.integers(1, 4), rope_theta=st.floats(2, 1e7),
        rope_scaling=st.none() | st.builds(Yarn, st.floats(1, 64), st.integers(1, 9999), mscale=st.floats(0.1, 2)),
        norm_eps=st.floats(1e-9, 1e-2), mtp_depth=st.integers(0, 2), mtp_loss_weight=st.floats(0.01, 1),
        compute_dtype=st.sampled_from(["bfloat16", "float32"]), slope_layer_offset=st.sampled_from([0, -1]),
        qkv_bias=st.booleans(), max_length=st.integers(1, 10**6), init_std=st.floats(1e-4, 1),
    ),
)  # fmt: skip
forms = st.fixed_dictionaries(
    {},
    optional=dict(
        head_dim=st.none(), num_key_value_heads=st.sampled_from([None, 0]), num_shared_experts=st.sampled_from([0, 2]),
        moe_shared_expert_intermediate_size=st.sampled_from([None, 24]), rotary_dim=st.just(8), foo=json_values,
        rope_parameters=st.sampled_from([YARN, {"rope_theta": 6e6}, {"partial_rotary_factor": 0.5}]),
        rope_scaling=st.sampled_from([None, {}, YARN, {"type": "default", "rope_theta": 6e6}]),
        dtype=st.just("float32"), original_max_position_embeddings=st.just(32), layer_types=st.none(),
        n_routed_experts=st.just(16),
    ),
)  # fmt: skip


@given(st.sampled_from(sorted(BASES)), forms, tiny_fields)
def test_exports_say_what_the_model_is_and_keep_all_else(base, form, fields):
    hf = BASES[base] | {"rope_theta": 6e6} | form
    if hf.get("rope_scaling") is hf.get("rope_parameters") is None:
        hf.pop("original_max_position_embeddings", None)
    try:
        config = from_hf(hf)
    except ValueError:  # the two objects of the rope contradict each other
        return
    assert to_hf(config) == hf | {"slope_layer_offset": 0}
    changed = dataclasses.replace(config, **fields)
    written = json.loads(json.dumps(to_hf(changed)))
    assert from_hf(written) == changed
    assert hf.keys() <= written.keys() | {"layer_types"}
    if "foo" in hf:
        assert json.dumps(written["foo"]) == json.dumps(hf["foo"])  # NaN is not equal to itself


def test_another_architecture_keeps_ids_and_drops_what_is_of_the_old_one():
    source = RELEASES["Ling-flash-2.0"] | {"foo": [1], "use_sliding_window": False}
    target = model_config("ling-2.6-flash", max_length=32768)
    migrated = form_config(from_hf(source), target, "mla")
    written = to_hf(migrated)
    assert from_hf(written) == migrated
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "foo", "transformers_version", "use_cache")
    assert {key: written[key] for key in kept} == {key: source[key] for key in kept}
    assert written["architectures"] == ["BailingMoeV2_5ForCausalLM"] and written["model_type"] == "bailing_hybrid"
    assert "auto_map" not in written


def test_what_was_quantised_is_exported_as_what_it_is_now():
    written = to_hf(from_hf(FIXTURE | FP8))
    assert not written.keys() & set(QUANTISATION)


def test_the_files_keys_survive_a_workdir(tmp_path):
    config = from_hf(PLAIN | {"foo": {"bar": [1, None]}})
    orbax.save_params(tmp_path / "checkpoints", {"w": 1.0}, config)
    read, _ = orbax.load_config(tmp_path / "checkpoints")
    assert read == config and to_hf(read) == to_hf(config)
    older = dataclasses.asdict(config)
    del older["hf_source"]  # as checkpoints were before
    assert orbax.config_from_json(older) == config


def test_a_run_goes_on_whatever_file_its_model_came_from():
    fields = {"model": dataclasses.asdict(from_hf(FIXTURE)), "optimizer": {"schedule": "wsm"}}
    other = fields | {"model": dataclasses.asdict(from_hf(FIXTURE | {"eos_token_id": 3}))}
    older = fields | {"model": without(fields["model"], "hf_source")}
    assert differences(fields, other) == differences(older, fields) == []
