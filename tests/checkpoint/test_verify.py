"""A port is verified number by number, whatever the two sides are stored in."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ling_jax.checkpoint import save_hf, transfer
from ling_jax.checkpoint.hf_reader import HfReader
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.orbax_parts import OrbaxReader, OrbaxWriter
from ling_jax.checkpoint.parts import TreeReader
from ling_jax.checkpoint.verify import compare_models
from tests.helpers.tiny import random_params, tiny_config

SIZES = dict(mtp_depth=1, compute_dtype="float32", expert_ffn_size=130, hidden_size=144)  # ragged blocks of FP8
CONFIG = tiny_config(**SIZES)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, dtype="float32")


def as_hf(reader, folder, dtype="float32", *, fp8=False):
    folder.mkdir()
    transfer.transfer(
        reader, HfWriter(folder, reader.config, {leaf: np.dtype(dtype) for leaf in reader.dtypes}, fp8=fp8)
    )
    return HfReader(folder)


def as_orbax(reader, folder):
    transfer.transfer(reader, OrbaxWriter(folder, reader.config, reader.dtypes))
    return OrbaxReader(folder)


def test_every_tensor_is_compared_by_several_threads(tmp_path, params, monkeypatch):
    monkeypatch.setattr(transfer, "BATCH_BYTES", 10_000)
    reader, seen = TreeReader(params, CONFIG), []
    found = compare_models(reader, as_orbax(reader, tmp_path / "run"), threads=3, progress=seen.append)
    save_hf(params, CONFIG, tmp_path / "hf")
    stored = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    assert {name: found.tensors[name].size for name in stored} == {name: x.size for name, x in stored.items()}
    assert found.tensors.keys() == stored.keys() and not found.different and not found.roundings
    assert len(seen) > 3 and sum(seen) == 4 * sum(x.size for x in stored.values())
    found.check(tmp_path)
    assert str(found) == f"{len(stored)} tensors"


def test_tensors_that_differ_are_named_with_how_much(tmp_path, params):
    reader = TreeReader(params, CONFIG)
    written = as_hf(reader, tmp_path / "hf")
    params = {**params, "head": params["head"].copy(), "embed": params["embed"].copy()}
    params["head"][3, 4] += 0.5
    params["head"][5, :2] -= 2
    params["embed"][0, 0] = np.nan
    found = compare_models(TreeReader(params, CONFIG), written)
    assert found.different.keys() == {"lm_head.weight", "model.word_embeddings.weight"}
    assert found.different["lm_head.weight"].count == 3
    assert found.different["lm_head.weight"].largest == pytest.approx(2)
    assert found.different["model.word_embeddings.weight"].largest == np.inf
    with pytest.raises(ValueError, match=r"2 of \d+ tensors .* lm_head.weight: 3 of 5760 numbers, by at most 2"):
        found.check(tmp_path)


def test_a_wider_target_holds_the_same_numbers_and_a_narrower_one_their_rounding(tmp_path, params):
    reader = TreeReader(params, CONFIG)
    narrow = as_hf(reader, tmp_path / "narrow", "bfloat16")
    found = compare_models(reader, narrow)
    assert not found.different and found.roundings.keys() == {"bfloat16"}
    assert str(found).endswith(f"{len(found.tensors)} of them rounded to bfloat16")
    found = compare_models(narrow, as_hf(narrow, tmp_path / "wide"))
    assert not found.different and not found.roundings
    params["head"][3, 4] += 2.0**-6 * abs(params["head"][3, 4])  # more than a rounding
    assert compare_models(TreeReader(params, CONFIG), narrow).different["lm_head.weight"].count == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float8_is_what_our_quantiser_gives_within_the_error_of_the_format(tmp_path, params, dtype):
    source = TreeReader(jax.tree.map(lambda leaf: leaf.astype(dtype), params), CONFIG)
    found = compare_models(source, as_hf(source, tmp_path / "fp8", dtype, fp8=True))
    assert not found.different and found.roundings.keys() == {"float8"}
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in found.roundings["float8"]
    assert "model.layers.1.mlp.gate.weight" not in found.roundings["float8"]
    error, size = np.sqrt(found.float8_squares)
    assert 0.01 < error / size < 0.04  # E4M3 rounds to 2^-4 at worst, uniformly
    assert "of them rounded to float8 (root mean square error 2." in str(found)


def change(file, name, dtype, function):
    """Replaces a tensor's numbers in a safetensors file."""
    content = bytearray(file.read_bytes())
    size = 8 + int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8:size])[name]["data_offsets"]
    place = slice(size + begin, size + end)
    content[place] = function(np.frombuffer(content[place], dtype)).astype(dtype).tobytes()
    file.write_bytes(content)


EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


def test_a_code_of_float8_that_changed_is_found(tmp_path, params):
    reader = TreeReader(params, CONFIG)
    as_hf(reader, tmp_path / "fp8", fp8=True)
    change(tmp_path / "fp8" / "model.safetensors", EXPERT, np.uint8, lambda codes: codes ^ (np.arange(codes.size) == 5))
    found = compare_models(reader, HfReader(tmp_path / "fp8"))
    assert found.different.keys() == {EXPERT} and found.different[EXPERT].count == 1


def test_scales_that_are_not_those_of_our_quantiser_are_found(tmp_path, params):
    """Three times the scale and a third of the codes: nearly the same numbers, and not what a port writes."""
    reader = TreeReader(params, CONFIG)
    as_hf(reader, tmp_path / "fp8", fp8=True)
    file, e4m3 = tmp_path / "fp8" / "model.safetensors", ml_dtypes.float8_e4m3fn
    change(file, EXPERT, e4m3, lambda codes: codes.astype(np.float32) / 3)
    change(file, f"{EXPERT}_scale_inv", np.float32, lambda scale: scale * 3)
    assert compare_models(reader, HfReader(tmp_path / "fp8")).different.keys() == {EXPERT}


def test_another_model_is_refused(tmp_path, params):
    other = tiny_config(**SIZES | {"vocab_size": 41})
    written = TreeReader(random_params(other, dtype="float32"), other)
    with pytest.raises(
        ValueError, match=r"another model than the source: embed is \(40, 144\) in the source and \(41, 144\) in"
    ):
        compare_models(TreeReader(params, CONFIG), written)
