"""FP8 in blocks is written as it is read."""

import dataclasses
import json

import numpy as np
import pytest

from ling_jax.checkpoint import hf_tensors, load_hf
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.parts import TreeReader
from ling_jax.checkpoint.quantised import quantise
from ling_jax.checkpoint.tensors import Tensors
from ling_jax.checkpoint.transfer import transfer
from tests.helpers.tiny import random_params, tiny_config

WIDE = tiny_config("2.6", hidden_size=160, head_dim=64, expert_ffn_size=136, num_layers=2, mtp_depth=1)


def write_fp8(reader, folder):
    folder.mkdir()
    transfer(reader, HfWriter(folder, reader.config, reader.dtypes, fp8=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_in_fp8_is_read_within_its_error_and_written_again_the_same(tmp_path, dtype):
    config = dataclasses.replace(WIDE, compute_dtype=dtype)
    params = random_params(config, dtype=np.dtype(dtype))
    write_fp8(TreeReader(params, config), tmp_path / "one")
    found, read = load_hf(tmp_path / "one")
    write_fp8(TreeReader(found, read), tmp_path / "two")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    names = Tensors(tmp_path / "one", json.loads((tmp_path / "one" / "config.json").read_text()))
    quantised = {name for name in names.names() if names.stored_dtype(name) == "F8_E4M3"}
    assert {"model.layers.1.mlp.experts.7.down_proj.weight"} < quantised
    assert not any("norm" in name or "embed" in name or name.endswith("mlp.gate.weight") for name in quantised)
    wanted, values = hf_tensors(params, config), hf_tensors(found, read)
    for name, value in values.items():
        exact = wanted[name].astype(np.float32)
        error = np.abs(value.astype(np.float32) - exact)
        if name in quantised:  # half of 2^-3 of a number, or of the smallest code where it is small
            assert (error <= np.maximum(np.abs(exact) * 2**-4, np.abs(exact).max() / 448 * 2**-10) * 1.02).all(), name
        else:
            assert (error == 0).all(), name


def test_blocks_that_fp8_cannot_hold_are_named(tmp_path):
    params = random_params(WIDE, dtype="float32")
    next(iter(params["segments"]["0"].values()))["mixer"]["out"][0, 0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"attention\.dense\.weight: a block has NaN or infinity"):
        write_fp8(TreeReader(params, WIDE), tmp_path / "out")


def test_zeros_stay_zeros():
    codes, scale = quantise(np.zeros((130, 5), np.float32))
    assert scale.shape == (2, 1) and np.isfinite(scale).all() and not codes.astype(np.float32).any()
