"""Configs of releases and models go through config.json, and no key is lost on the way."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax import model, spec
from ling_jax.checkpoint import from_hf, orbax, to_hf
from ling_jax.checkpoint.hf_keys import QUANTISATION
from ling_jax.config import MODELS, ModelConfig, Yarn, model_config
from ling_jax.config_dicts import differences
from ling_jax.migrate.convert import form_config
from ling_jax.train.config import RESUMABLE
from tests.helpers.hf_configs import BASES, FIXTURE, PLAIN, YARN, json_values, rope_5, without
from tests.helpers.releases import COUNTS, FP8, RELEASES
from tests.helpers.tiny import FAMILIES, tiny_config

# Fields that config.json does not hold; they come back as their defaults.
HOW_IT_IS_RUN = dict(remat="full", scan_layers=True, lightning_chunk=None, loss_chunk=128)


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
    assert folders
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
        vocab_size=77, hidden_size=64, num_layers=3, num_heads=8, head_dim=16, full_attention="gqa", layer_group_size=2,
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
        fields = {field: value} | (dict(num_kv_heads=4) if field == "full_attention" else {})
        assert to_hf(dataclasses.replace(config, **fields)) != to_hf(config), field


def test_config_json_of_another_family_is_an_error():
    with pytest.raises(
        ValueError, match="no Hugging Face architecture has full_attention 'mla' with layer_group_size 1"
    ):
        to_hf(tiny_config(layer_group_size=1))


# Exports


def test_changed_fields_take_the_place_of_the_files_keys():
    config = from_hf(RELEASES["Ling-2.6-1T"])
    fields = dict(vocab_size=200, mtp_depth=0, compute_dtype="float32", rope_theta=1e4, slope_layer_offset=-1)
    written = to_hf(dataclasses.replace(config, **fields))
    wanted = dict(
        vocab_size=200, num_nextn_predict_layers=0, torch_dtype="float32", rope_theta=1e4, slope_layer_offset=-1
    )
    assert written == without(RELEASES["Ling-2.6-1T"], *QUANTISATION) | wanted


def test_what_a_file_repeats_follows_what_has_changed():
    repeated = {
        "layer_types": ["linear_attention"] * 3 + ["full_attention"], "mlp_layer_types": ["dense"] + ["sparse"] * 3,
        "qk_head_dim": 24, "linear_key_value_heads": 4, "num_local_experts": 16,
    }  # fmt: skip
    config = from_hf(PLAIN | repeated)
    assert to_hf(config) == PLAIN | repeated | {"slope_layer_offset": 0}
    changed = dataclasses.replace(config, num_layers=6, nope_dim=24, num_heads=8, num_experts=32)
    written = to_hf(changed)
    assert from_hf(written) == changed and not written.keys() & {"layer_types", "mlp_layer_types"}
    assert [written[key] for key in ("qk_head_dim", "linear_key_value_heads", "num_local_experts")] == [32, 8, 32]
    dense = to_hf(dataclasses.replace(config, first_dense_layers=2))
    assert "mlp_layer_types" not in dense and dense["layer_types"] == repeated["layer_types"]


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
        n_routed_experts=st.just(16), rotary_pct=st.just(0.5), qk_head_dim=st.sampled_from([None, 24]),
        linear_key_value_heads=st.sampled_from([0, 4]), mlp_layer_types=st.none(),
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
    as_text = [json.dumps(keys, sort_keys=True) for keys in (to_hf(config), hf | {"slope_layer_offset": 0})]
    assert as_text[0] == as_text[1]  # NaN is not equal to itself
    changed = dataclasses.replace(config, **fields)
    written = json.loads(json.dumps(to_hf(changed)))
    assert from_hf(written) == changed
    assert hf.keys() <= written.keys()
    if "foo" in hf:
        assert json.dumps(written["foo"]) == json.dumps(hf["foo"])


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
    older["softmax"] = older.pop("full_attention")
    assert orbax.config_from_json(older) == config


def test_a_run_goes_on_whatever_file_its_model_came_from():
    fields = {"model": dataclasses.asdict(from_hf(FIXTURE)), "optimizer": {"schedule": "wsm"}}
    other = fields | {"model": dataclasses.asdict(from_hf(FIXTURE | {"eos_token_id": 3}))}
    model = fields["model"]
    older = fields | {"model": without(model, "hf_source", "full_attention") | {"softmax": model["full_attention"]}}
    assert differences(fields, other, RESUMABLE) == differences(older, fields, RESUMABLE) == []
