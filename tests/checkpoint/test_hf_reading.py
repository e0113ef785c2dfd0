"""config.json in all its forms is the model that its file means."""

import dataclasses
import math

import pytest

from ling_jax import model, spec
from ling_jax.checkpoint import from_hf, to_hf
from ling_jax.checkpoint.hf_keys import ARCHITECTURES, ROPE
from ling_jax.config import Yarn
from tests.helpers.hf_configs import BASES, FIXTURE, GQA, PLAIN, YARN, refusal, rope_5, without
from tests.helpers.releases import RELEASES

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


@pytest.mark.parametrize(
    "key", ["kda_lower_bound", "kda_num_heads", "short_conv_kernel_size", "gated_attention_proj_granularity_type"]
)
def test_any_key_of_ling_3_marks_it(key):
    assert key in refusal(FIXTURE | {key: 1})


def test_the_open_ports_name_of_2_6_is_2_6():
    hf = FIXTURE | {"architectures": ["BailingHybridForCausalLM"]}
    assert from_hf(hf) == from_hf(FIXTURE)
    assert to_hf(from_hf(hf))["architectures"] == ["BailingHybridForCausalLM"]


def test_the_rotated_dims_that_the_open_port_writes_as_head_dim_are_none(capsys):
    """It takes the head of Lightning layers from hidden_size and num_attention_heads."""
    release = RELEASES["Ling-2.6-flash"]
    hf = rope_5(release, "rope_theta", partial_rotary_factor=0.5) | {
        "head_dim": 64, "qk_head_dim": 192, "linear_key_value_heads": 32, "model_type": "bailing2_5_moe",
        "layer_types": (["linear_attention"] * 7 + ["full_attention"]) * 4,
        "mlp_layer_types": ["dense"] + ["sparse"] * 31,
    }  # fmt: skip
    config = from_hf(hf)
    assert config == from_hf(release) and capsys.readouterr().err == ""
    assert to_hf(config) == hf | {"head_dim": 128, "slope_layer_offset": 0}
    wider = dataclasses.replace(config, hidden_size=8192, head_dim=256, rotary_dim=64)
    assert from_hf(to_hf(wider)) == wider


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


# Rope


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
        ({"num_local_experts": 8}, ("num_experts is 16", "num_local_experts is 8")),
        ({"moe_topk": 1}, ("num_experts_per_tok is 4", "moe_topk is 1")),
        ({"rotary_base": 10000}, ("rope_theta is 6000000.0", "rotary_base is 10000")),
        ({"rotary_pct": 0.25}, ("partial_rotary_factor is 0.5", "rotary_pct is 0.25")),
    ],
)
def test_two_values_of_one_thing_are_both_named(keys, named):
    message = refusal(FIXTURE | keys)
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("num_experts", "num_local_experts"), ("num_experts", "n_routed_experts"), ("num_experts_per_tok", "moe_topk"),
        ("num_experts_per_tok", "moe_router_topk"), ("rope_theta", "rotary_base"),
        ("partial_rotary_factor", "rotary_percent"), ("torch_dtype", "dtype"),
        ("num_shared_experts", "n_shared_experts"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("base", BASES)
def test_a_key_has_the_names_that_other_tools_give_it(base, key, other):
    hf = without(BASES[base] | {"rope_theta": 6e6}, key) | {other: (BASES[base] | {"rope_theta": 6e6})[key]}
    assert from_hf(hf) == from_hf(BASES[base] | {"rope_theta": 6e6})
    assert to_hf(from_hf(hf)) == hf | {"slope_layer_offset": 0}


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
        ({"factor": 2.0}, "rope_scaling.factor is 2.0; expected null, or rope_type 'yarn'"),
        ({"type": "default", "factor": 2.0}, "rope_scaling.factor is 2.0; expected null, or rope_type 'yarn'"),
        (YARN | {"factor": "2"}, "rope_scaling.factor is '2'; expected a number from 1"),
        (YARN | {"factor": -2}, "rope_scaling.factor is -2; expected a number from 1"),
        (YARN | {"factor": True}, "rope_scaling.factor is true; expected a number from 1"),
        (YARN | {"beta_fast": 0}, "rope_scaling.beta_fast is 0; expected a number above 0"),
        (YARN | {"attention_factor": math.nan}, "rope_scaling.attention_factor is nan; expected a number above 0"),
        (
            YARN | {"original_max_position_embeddings": 32.0},
            "original_max_position_embeddings is 32.0; expected a whole",
        ),
        (YARN | {"beta_fast": 1, "beta_slow": 32}, "rope_scaling.beta_fast is 1.0; expected a number above beta_slow"),
        (YARN | {"beta_slow": 32}, "rope_scaling.beta_slow is 32.0; expected a number below beta_fast (32)"),
        (YARN | {"attn_factor": 0.5}, "rope_scaling.attn_factor is 0.5; expected 1"),
        ({"long_factor": [1.0]}, "rope_scaling.long_factor is [1.0]; expected null"),
        ({"alpha": 1000.0}, "rope_scaling.alpha is 1000.0; expected null"),
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
