"""Weights go between Hugging Face folders and parameters without loss."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from ling_jax.checkpoint import hf, load_hf, save_hf
from tests.conftest import FIXTURES

SOURCE = FIXTURES / "v25_yarn_mscale"


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model").mkdir(exist_ok=True)
        shutil.copy(SOURCE / name, tmp_path / "model" / name)
    return tmp_path / "model"


def test_every_tensor_survives_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "MAX_SHARD_BYTES", 100_000)
    params, config = load_hf(SOURCE)
    save_hf(params, config, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    again, same = load_hf(tmp_path / "out")
    assert same == config
    source = safetensors.numpy.load_file(SOURCE / "model.safetensors")
    found = hf.hf_tensors(again, same)
    assert found.keys() == source.keys()
    for name, value in source.items():
        assert found[name].tobytes() == value.tobytes() and found[name].shape == value.shape, name


@pytest.mark.parametrize("offset", [0, -1])
def test_a_stored_slope_decides_the_convention(folder, offset):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    slope = 0.25 ** np.arange(1, 5) * (1 - (2 + offset) / 3 + 1e-5)
    tensors["model.layers.2.attention.slope"] = slope.astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert load_hf(folder)[1].slope_layer_offset == offset


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder, edit):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (truncate, "not a whole safetensors file"),
        (
            lambda f: edit_config(f, vocab_size=300),
            r"lm_head.weight is \(256, 64\); config.json makes it \(300",
        ),
        (lambda f: edit_tensors(f, lambda t: t.pop("lm_head.weight")), "missing .* lm_head.weight"),
        (lambda f: edit_tensors(f, lambda t: t.update(extra=t["lm_head.weight"])), "belong to no part .* extra"),
        (lambda f: edit_config(f, architectures=["BailingMoeV3ForCausalLM"]), "Ling 3.0"),
        (lambda f: edit_config(f, architectures=["LlamaForCausalLM"]), "LlamaForCausalLM is not supported"),
        (lambda f: edit_config(f, group_norm_size=3), "num_norm_groups 3 does not divide num_heads 4"),
    ],
)
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_hf(folder)


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    params, config = load_hf(SOURCE)
    monkeypatch.setattr(hf, "_write_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_hf(params, config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
