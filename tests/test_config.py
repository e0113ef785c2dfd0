"""Configs say what is wrong, and count what was published."""

import dataclasses
import subprocess
import sys

import jax
import pytest

from ling_jax import model, spec
from ling_jax.config import MODELS, ModelConfig, model_config
from ling_jax.train.config import from_dict, to_config_dict

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


def test_the_flash_model_has_the_context_of_its_release():
    flash = model_config("ling-2.6-flash")
    assert (flash.max_length, flash.rope_scaling) == (131072, None)


def test_ring_and_ling_are_one_architecture():
    assert model_config("ring-2.6-1t") == model_config("ling-2.6-1t")


# Errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_norm_groups=3), "num_norm_groups 3 does not divide num_heads 4"),
        (dict(num_expert_groups=3), "num_expert_groups 3 does not divide num_experts 8"),
        (dict(full_attention="gqa", num_kv_heads=3), "num_kv_heads 3 does not divide num_heads 4"),
        (dict(full_attention="gqa"), "num_kv_heads is 0; it must be at least 1"),
        (dict(top_groups=3), "top_groups is 3; there are only num_expert_groups = 2"),
        (dict(top_k=5), "top_k is 5; the 1 kept groups hold 4 experts"),
        (dict(rotary_dim=7), "rotary_dim is 7; it must be even and within head_dim 32"),
        (dict(rotary_dim=34), "rotary_dim is 34; it must be even and within head_dim 32"),
        (dict(rope_dim=15), "rope_dim is 15; it must be even"),
        (dict(remat="ful"), "remat is 'ful'; it is one of none, full, dots, ffn"),
        (dict(full_attention="mha"), "full_attention is 'mha'; it is 'mla' or 'gqa'"),
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


def test_the_file_of_a_model_is_no_setting_of_it():
    with pytest.raises(ValueError, match="no field 'hf_source'"):
        model_config("tiny-2.6", hf_source="{}")
    made = model_config("tiny-2.6")
    read = dataclasses.replace(made, hf_source="{}")
    assert read == made and hash(read) == hash(made) and "hf_source" not in repr(read)
    with pytest.raises(ValueError, match=r"config\.hf_source is unknown"):
        from_dict(ModelConfig, dataclasses.asdict(read), "config")
    assert "hf_source" not in to_config_dict(read)


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
