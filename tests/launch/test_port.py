import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ling_jax import data
from ling_jax.checkpoint import hf as hf_module
from ling_jax.checkpoint import load_hf, orbax, save_hf
from ling_jax.checkpoint.folder import open_model
from tests.faults import ROOT
from tests.tiny import FAMILIES, random_params, tiny_config


def port(source, target, *more):
    command = [sys.executable, "-m", "launch.port", f"--source={source}", f"--target={target}", *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(path)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hf_to_orbax_to_hf_keeps_every_byte(tmp_path, family, dtype, monkeypatch):
    config = tiny_config(family, compute_dtype=dtype, mtp_depth=1, vocab_size=263)
    params = random_params(config, dtype=jnp.dtype(dtype))
    monkeypatch.setattr(hf_module, "MAX_SHARD_BYTES", 10_000)  # so that there is an index
    save_hf(params, config, tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    data.save_tokenizer(data.train_bpe(["words"], 263), tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    if dtype == "float32" and family == "2.6":  # through the program once, the rest through its functions
        for source, target in (("hf", "run"), ("run", "back")):
            done = port(tmp_path / source, tmp_path / target)
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (tmp_path / "hf" / "tokenizer.json").read_bytes()
        for folder in ("hf", "run", "back"):
            assert open_model(tmp_path / folder).template.source == "{{ messages }}"
    else:
        orbax.save_params(tmp_path / "run" / "checkpoints", *load_hf(tmp_path / "hf"))
        save_hf(*orbax.load_params(tmp_path / "run" / "checkpoints"), tmp_path / "back")
    wanted, found = tensors(tmp_path / "hf"), tensors(tmp_path / "back")
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert tensor.dtype == found[name].dtype and tensor.tobytes() == found[name].tobytes(), name
    assert load_hf(tmp_path / "back")[1] == load_hf(tmp_path / "hf")[1]


def test_another_dtype_is_cast_and_the_bias_of_experts_stays_wide(tmp_path):
    config = tiny_config(compute_dtype="float32")
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "hf")
    assert port(tmp_path / "hf", tmp_path / "run", "--dtype=bfloat16").returncode == 0
    params, ported = orbax.load_params(tmp_path / "run" / "checkpoints")
    assert ported.compute_dtype == "bfloat16"
    moe = next(run["ffn"] for run in params["segments"]["0"].values() if "router" in run["ffn"])
    assert moe["expert_bias"].dtype == np.float32 and moe["router"].dtype == jnp.bfloat16


def test_bad_folders_are_named_and_nothing_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    done = port(tmp_path / "empty", tmp_path / "target")
    assert done.returncode == 2 and "holds neither *.safetensors nor checkpoints/" in done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = port(tmp_path / "empty", tmp_path / "full")
    assert done.returncode == 2 and "exists and is not empty" in done.stderr
    assert not (tmp_path / "target").exists()
