"""Reading and writing a model one layer at a time."""

import jax
import numpy as np
import pytest
import tensorstore

from ling_jax.checkpoint import chunks, load_hf, orbax, save_hf
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.layers import open_layers
from ling_jax.checkpoint.orbax_parts import OrbaxReader
from ling_jax.checkpoint.parts import TOP, TreeReader
from ling_jax.model.layers import layer_kind, layer_spec
from ling_jax.spec import named_leaves
from tests.helpers.tiny import assert_trees_equal, random_params, tiny_config

BOTH = pytest.mark.parametrize("family", ["2.6", "2.0"])


def some(family):
    config = tiny_config(family, mtp_depth=2, first_dense_layers=1, compute_dtype="float32")
    return random_params(config, dtype="float32"), config


@BOTH
@pytest.mark.parametrize("kind", ["workdir", "hf"])
def test_layers_on_disk_are_those_in_memory(tmp_path, family, kind):
    params, config = some(family)
    if kind == "hf":
        save_hf(params, config, tmp_path / "model")
    else:
        orbax.save_params(tmp_path / "model/checkpoints", jax.tree.map(jax.numpy.asarray, params), config)
    found, wanted = open_layers(tmp_path / "model"), TreeReader(params, config)
    for name in TOP:
        np.testing.assert_array_equal(found.top(name), params[name])
    for layer in range(config.num_layers + config.mtp_depth):
        assert_trees_equal(found.layer(layer), wanted.layer(layer))
    declared = named_leaves(layer_spec(config, layer_kind(config, 1)))
    assert {name: x.shape for name, x in named_leaves(found.layer(1)).items()} == {
        name: leaf.shape for name, leaf in declared.items()
    }


@BOTH
def test_written_layer_by_layer_is_written_whole(tmp_path, family, monkeypatch):
    params, config = some(family)
    monkeypatch.setattr("ling_jax.checkpoint.hf_writer.MAX_SHARD_BYTES", 3000)  # a layer takes several shards
    reader = TreeReader(params, config)
    writer = HfWriter(tmp_path, config, reader.dtypes)
    for layer in reversed(range(config.num_layers + config.mtp_depth)):
        writer.layer(layer, reader.layer(layer))
    for name in TOP:
        writer.top(name, reader.top(name))
    writer.close()
    found, found_config = load_hf(tmp_path)
    assert_trees_equal(found, params)
    assert found_config.mtp_depth == 2 and not list(tmp_path.glob("*.partial"))


def test_a_layer_that_does_not_fit_is_named(tmp_path):
    params, config = some("2.6")
    reader = TreeReader(params, config)
    writer, layer = HfWriter(tmp_path, config, reader.dtypes), reader.layer(0)
    with pytest.raises(ValueError, match=r"layer 1: .*'mixer/gate'"):
        writer.layer(1, layer)
    layer["mixer"]["k"] = layer["mixer"]["k"][:, :1]
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.query_key_value.*mixer/k is \(16, 1, 8\)"):
        writer.layer(0, layer)


def test_leaves_are_stored_by_layers_and_experts(tmp_path, monkeypatch):
    """So that a layer is read without the bytes of the others."""
    config = tiny_config("2.6", layer_group_size=4, compute_dtype="float32", first_dense_layers=0)
    params = random_params(config, dtype="float32")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 8192)
    orbax.save_params(tmp_path, jax.tree.map(jax.numpy.asarray, params), config)
    leaf = "params.segments.0.0_lightning_moe.ffn.experts.gate"
    base = {"driver": "ocdbt", "base": f"file://{tmp_path}/0/state", "path": f"{leaf}/"}
    stored = tensorstore.open({"driver": "zarr", "kvstore": base}, open=True).result()
    assert stored.shape == (1, 3, 8, 16, 8) and stored.chunk_layout.read_chunk.shape == (1, 1, 1, 16, 8)
    assert_trees_equal(orbax.load_params(tmp_path)[0], params)
    assert_trees_equal(OrbaxReader(tmp_path).layer(1), TreeReader(params, config).layer(1))
