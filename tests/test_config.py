"""Configs say what is wrong, read what was published, and count what was published."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from ling_jax import model, spec
from ling_jax.checkpoint import from_hf, to_hf
from ling_jax.checkpoint.hf_config import ARCHITECTURES
from ling_jax.config import MODELS, ModelConfig, Yarn, model_config
from tests.conftest import FIXTURES
from tests.tiny import FAMILIES, tiny_config

FIXTURE = json.loads((FIXTURES / "v25_yarn_mscale" / "config.json").read_text())
# Fields that config.json does not hold; they come back as their defaults.
HOW_IT_IS_RUN = dict(remat="full", scan_layers=True, lightning_chunk=None, loss_chunk=128)


# Billions without MTP and of one MTP layer, to the digits that are known (docs/architecture.md §13).
COUNTS = {
    "ling-mini-2.0": ("16.256", "0.83"), "ring-mini-2.0": ("16.256", "0.83"),
    "ling-flash-2.0": ("102.89", "3.31"), "ring-flash-2.0": ("102.89", "3.31"),
    "ling-1t": ("999.7", "13.22"), "ring-1t": ("999.7", "13.22"),
    "ring-mini-linear-2.0": ("16.423", None), "ring-flash-linear-2.0": ("104.18", None),
    "ling-2.5-1t": ("1012.23", "13.18"), "ring-2.5-1t": ("1012.23", "13.18"),
    "ling-2.6-1t": ("1012.23", "13.18"), "ring-2.6-1t": ("1012.23", "13.18"),
    "ling-2.6-flash": ("104.19", "3.31"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("tiny")])
def test_parameter_counts_are_the_published(name):
    config = model_config(name, mtp_depth=1)
    params = spec.named_leaves(jax.eval_shape(lambda key: model.init(key, config), jax.random.key(0)))
    sizes = {part: sum(p.size for n, p in params.items() if n.startswith("mtp/") == part) for part in (True, False)}
    for size, wanted in zip((sizes[False], sizes[True]), COUNTS[name], strict=True):
        assert wanted is None or f"{size / 1e9:.{len(wanted.split('.')[1])}f}" == wanted
    assert sum(sizes.values()) == spec.count(model.model_spec(config))


@pytest.mark.parametrize(
    ("name", "depth"), [("ling-1t", 0), ("ring-flash-linear-2.0", 0), ("ling-2.5-1t", 0), ("ling-2.6-flash", 1)]
)
def test_releases_with_mtp(name, depth):
    assert model_config(name).mtp_depth == depth


def test_ring_and_ling_are_one_architecture():
    assert model_config("ring-2.6-1t") == model_config("ling-2.6-1t")


# Errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_norm_groups=3), "num_norm_groups 3 does not divide num_heads 4"),
        (dict(num_expert_groups=3), "num_expert_groups 3 does not divide num_experts 8"),
        (dict(softmax="gqa", num_kv_heads=3), "num_kv_heads 3 does not divide num_heads 4"),
        (dict(softmax="gqa"), "num_kv_heads is 0; it must be at least 1"),
        (dict(top_groups=3), "top_groups is 3; there are only num_expert_groups = 2"),
        (dict(top_k=5), "top_k is 5; the 1 kept groups hold 4 experts"),
        (dict(rotary_dim=7), "rotary_dim is 7; it must be even and within head_dim 32"),
        (dict(rotary_dim=34), "rotary_dim is 34; it must be even and within head_dim 32"),
        (dict(rope_dim=15), "rope_dim is 15; it must be even"),
        (dict(remat="ful"), "remat is 'ful'; it is one of none, full, dots, ffn"),
        (dict(softmax="mha"), "softmax is 'mha'; it is 'mla' or 'gqa'"),
        (dict(slope_layer_offset=1), "slope_layer_offset is 1; it is 0 or -1"),
        (dict(lightning_chunk=0), "lightning_chunk is 0; at least 1"),
        (dict(mtp_depth=-1), "mtp_depth is -1; it must not be negative"),
        (dict(num_layers=0), "num_layers is 0; it must be at least 1"),
        (dict(loss_chunk=0), "loss_chunk is 0; it must be at least 1"),
        (dict(kv_lora_rank=0), "kv_lora_rank is 0; it must be at least 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_field(fields, message):
    with pytest.raises(ValueError, match=message):
        model_config("tiny-2.6", **fields)


def test_an_unknown_field_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="no field 'hiden_size', did you mean 'hidden_size'"):
        model_config("tiny-2.6", hiden_size=4)


def test_an_unknown_model_is_answered_with_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"'ling-2.6-t', did you mean 'ling-2.6-1t'\?; known: .*tiny-2.6"):
        model_config("ling-2.6-t")


def test_an_unknown_dtype_is_an_error():
    for name in ("bfloat17", "int32"):
        with pytest.raises(ValueError, match=f"compute_dtype is '{name}'; it is one of float32, bfloat16"):
            model_config("tiny-2.6", compute_dtype=name)


def test_configs_are_hashable_and_equal_whatever_names_the_dtype():
    assert len({model_config("tiny-2.6", compute_dtype=d) for d in ("float32", jax.numpy.float32, "f4")}) == 1


def test_a_config_needs_no_jax_imported_first():
    program = "from ling_jax.config import model_config; print(model_config('ling-2.6-1t').compute_dtype)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "bfloat16\n", run.stderr


# config.json


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
        dict(slope_layer_offset=-1, z_loss_weight=3.5e-6, mtp_loss_weight=0.0, init_std=0.01, norm_eps=1e-3),
    ],
    ids=["no shared expert", "biases", "yarn", "numbers"],
)
def test_every_field_survives_config_json(family, fields):
    if family == "2.0":
        fields.pop("slope_layer_offset", None)
    config = dataclasses.replace(tiny_config(family, **fields), **HOW_IT_IS_RUN)
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


def test_fixture_configs_survive(golden):
    folders = sorted(path.parent for path in golden.glob("*/config.json"))
    assert folders
    for folder in folders:
        config = from_hf(json.loads((folder / "config.json").read_text()))
        assert from_hf(to_hf(config)) == config, folder.name


def test_config_json_of_another_family_is_an_error():
    with pytest.raises(ValueError, match="no Hugging Face architecture has softmax 'mla' with layer_group_size 1"):
        to_hf(tiny_config(layer_group_size=1))


@pytest.mark.parametrize("architecture", ["BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"])
def test_ling_3_is_told_from_ling_2_6(architecture):
    hf = FIXTURE | {"architectures": [architecture]}
    assert hf["model_type"] == "bailing_hybrid"
    with pytest.raises(ValueError, match=rf"{architecture} is Ling 3.0 .* supported are BailingMoeV2_5ForCausalLM"):
        from_hf(hf)


def test_ling_3_is_known_by_its_keys_too():
    with pytest.raises(ValueError, match=r"is Ling 3\.0"):
        from_hf(FIXTURE | {"kda_lower_bound": -5.0})


@pytest.mark.parametrize("architectures", [["LlamaForCausalLM"], [], None])
def test_another_architecture_is_answered_with_the_supported(architectures):
    name = (architectures or ["none"])[0]
    with pytest.raises(ValueError, match=f"architecture {name} is not supported; .*{list(ARCHITECTURES)[-1]}"):
        from_hf(FIXTURE | {"architectures": architectures})


@pytest.mark.parametrize(
    "key", ["vocab_size", "num_experts_per_tok", "rope_theta", "kv_lora_rank", "layer_group_size", "group_norm_size"]
)
def test_a_missing_key_is_named_with_the_architecture(key):
    hf = {k: v for k, v in FIXTURE.items() if k != key}
    with pytest.raises(ValueError, match=f"{key} is missing; BailingMoeV2_5ForCausalLM needs it"):
        from_hf(hf)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("score_function", "softmax"),
        ("linear_silu", True),
        ("rope_interleave", False),
        ("tie_word_embeddings", True),
    ],
)
def test_a_value_that_the_official_code_does_not_compute_is_named(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value!r}; the released models have"):
        from_hf(FIXTURE | {key: value})


@pytest.mark.parametrize(
    "scaling", [None, {}, {"rope_type": "default", "rope_theta": 1e4}, {"type": "default"}, {"rope_theta": 1e4}]
)
def test_rope_scaling_that_only_repeats_the_rope_means_none(scaling):
    assert from_hf(FIXTURE | {"rope_scaling": scaling}).rope_scaling is None


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_yarn_is_found_under_both_names_of_its_type(key):
    scaling = {key: "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": None}
    assert from_hf(FIXTURE | {"rope_scaling": scaling}).rope_scaling == Yarn(4.0, 32)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "linear", "factor": 2.0}, "rope_scaling of type 'linear'; supported are yarn and default"),
        ({"type": "yarn"}, "yarn without factor and original_max_position_embeddings"),
    ],
)
def test_rope_scaling_that_does_not_run_is_an_error(scaling, message):
    with pytest.raises(ValueError, match=message):
        from_hf(FIXTURE | {"rope_scaling": scaling})


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (dict(rotary_dim=6, partial_rotary_factor=0.25), 6),
        (dict(rotary_dim=None, partial_rotary_factor=0.25), 4),
        (dict(partial_rotary_factor=None, rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.75}), 12),
        (dict(partial_rotary_factor=None), 16),
    ],
)
def test_rotary_dim_wins_over_the_factor(keys, wanted):
    assert from_hf(FIXTURE | keys).rotary_dim == wanted


@pytest.mark.parametrize("rank", [None, 24])
def test_queries_have_a_latent_only_with_q_lora_rank(rank):
    config = from_hf(FIXTURE | {"q_lora_rank": rank})
    assert config.q_lora_rank == rank
    names = spec.named_leaves(model.model_spec(config))
    assert any(name.endswith("mixer/q_a") for name in names) == (rank is not None)


@pytest.mark.parametrize("heads", [None, 0, FIXTURE["num_attention_heads"]])
def test_lightning_layers_have_all_heads(heads):
    assert from_hf(FIXTURE | {"num_kv_heads_for_linear_attn": heads}) == from_hf(FIXTURE)


def test_fewer_lightning_heads_are_an_error():
    with pytest.raises(ValueError, match="num_kv_heads_for_linear_attn is 2; Lightning layers have all 4 heads"):
        from_hf(FIXTURE | {"num_kv_heads_for_linear_attn": 2})


def test_head_dim_defaults_to_a_share_of_the_width():
    assert from_hf({k: v for k, v in FIXTURE.items() if k != "head_dim"}).head_dim == 64 // 4


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
    assert changed.keys() | HOW_IT_IS_RUN.keys() == {field.name for field in dataclasses.fields(ModelConfig)}
    for field, value in changed.items():
        fields = {field: value} | (dict(num_kv_heads=4) if field == "softmax" else {})
        assert to_hf(dataclasses.replace(config, **fields)) != to_hf(config), field
