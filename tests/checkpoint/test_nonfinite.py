"""Weights that are not finite are loaded, and named in one line."""

import jax
import numpy as np
import pytest

from ling_jax.checkpoint import load_hf, orbax, save_hf
from ling_jax.checkpoint.layers import open_layers
from ling_jax.checkpoint.nonfinite import CHUNK, count_nonfinite
from tests.helpers.hf_folders import copy_of_source, edit_tensors, read_tensors, warnings

BAD = "model.layers.2.mlp.experts.5.up_proj.weight"
BIAS = "model.layers.3.mlp.gate.expert_bias"


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture, to be damaged."""
    return copy_of_source(tmp_path)


@pytest.fixture
def spoilt(folder):
    def spoil(tensors):
        tensors[BAD][:2, 0] = np.nan, -np.inf
        tensors[BIAS][4] = np.inf
        return tensors

    edit_tensors(folder, spoil)
    return folder


def test_weights_that_are_not_finite_are_loaded_and_named_in_one_line(spoilt, capfd):
    params, config = load_hf(spoilt)
    (line,) = warnings(capfd)
    assert f"3 weights are NaN or infinite, in {BAD} (2), {BIAS} (1);" in line and str(spoilt) in line
    save_hf(params, config, spoilt.parent / "out")
    np.testing.assert_array_equal(read_tensors(spoilt.parent / "out")[BAD], read_tensors(spoilt)[BAD])


def test_a_part_of_a_tensor_is_counted_once(folder, capfd):
    def spoil(tensors):
        tensors["model.layers.0.attention.query_key_value.weight"][::64] = np.nan
        return tensors

    edit_tensors(folder, spoil)
    load_hf(folder)
    (line,) = warnings(capfd)
    assert "query_key_value.weight (192)" in line


def test_many_such_tensors_are_summed_up(folder, capfd):
    edit_tensors(folder, lambda t: {n: np.full_like(v, np.nan) if ".experts." in n else v for n, v in t.items()})
    load_hf(folder)
    (line,) = warnings(capfd)
    assert line.count("_proj.weight (1024)") == 4 and "and 140 more" in line


def test_layer_by_layer_they_are_named_with_their_layer(spoilt, capfd):
    reader = open_layers(spoilt)
    assert [bool(reader.layer(number)) and len(warnings(capfd)) for number in range(4)] == [0, 0, 1, 1]


def test_those_of_a_checkpoint_are_named_by_every_reader(spoilt, tmp_path, capfd):
    params, config = load_hf(spoilt)
    orbax.save_params(tmp_path / "run" / "checkpoints", jax.tree.map(jax.numpy.asarray, params), config)
    capfd.readouterr()
    orbax.load_params(tmp_path / "run" / "checkpoints")
    (line,) = warnings(capfd)
    assert "3 weights are NaN or infinite" in line and "ffn/expert_bias (1)" in line
    reader = open_layers(tmp_path / "run")
    assert [bool(reader.layer(number)) and len(warnings(capfd)) for number in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_every_element_is_looked_at(dtype):
    array = np.zeros((3, CHUNK // 2 + 1), np.dtype(dtype))
    array[0, 0], array[1, -1], array[2, -1] = np.nan, np.inf, -np.inf
    assert count_nonfinite(array) == count_nonfinite(array.T) == 3
    assert count_nonfinite(array[:0]) == 0
