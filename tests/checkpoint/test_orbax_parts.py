"""A checkpoint that is written part by part is one that Orbax restores."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from ling_jax.checkpoint import chunks, orbax
from ling_jax.checkpoint.orbax_parts import OrbaxReader, OrbaxWriter, stored_name, zarr
from ling_jax.checkpoint.parts import Part
from ling_jax.config import model_config
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import make_mesh
from ling_jax.spec import named_leaves
from tests.helpers.tiny import assert_trees_equal, random_params, tiny_config

CONFIG = tiny_config("2.6", mtp_depth=2, first_dense_layers=1, compute_dtype="float32")


def parts(params):
    """By layers and experts."""
    for path, leaf in named_leaves(params).items():
        for index in np.ndindex(leaf.shape[: chunks.stacked_dims(path)]):
            yield Part(path, index, leaf[index])


def write(folder, params, config=CONFIG):
    dtypes = {path: leaf.dtype for path, leaf in named_leaves(params).items()}
    writer = OrbaxWriter(folder, config, dtypes)
    for part in parts(params):
        if not writer.is_written(*part[:2]):
            writer.write([part])
    writer.close()


def mixed_params():
    """Most leaves bfloat16, some wide."""
    params = random_params(CONFIG, dtype="float32")
    return jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16) if leaf.ndim % 2 else leaf, params)


def test_orbax_restores_what_was_written_by_layers_and_experts(tmp_path):
    params = mixed_params()
    write(tmp_path, params)
    with ocp.CheckpointManager(tmp_path) as manager:
        restored = manager.restore(0, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    assert_trees_equal(restored["state"]["params"], params)
    found, config = orbax.load_params(tmp_path)
    assert_trees_equal(found, params)
    assert config == CONFIG


def test_a_mesh_of_any_size_restores_it(tmp_path):
    params = mixed_params()
    write(tmp_path, params)
    mesh = make_mesh({"fsdp": len(jax.devices())})
    assert_trees_equal(orbax.load_params(tmp_path, mesh=mesh)[0], params)


def test_a_run_saves_its_next_checkpoint_beside_it(tmp_path):
    params = mixed_params()
    write(tmp_path, params)
    later = jax.tree.map(lambda leaf: leaf + 1, params)
    with orbax.open_manager(tmp_path, keep=2) as manager:
        orbax.save(manager, 1, {"params": later}, CONFIG)
    assert_trees_equal(orbax.load_params(tmp_path, 0)[0], params)
    assert_trees_equal(orbax.load_params(tmp_path)[0], later)


def test_it_has_the_chunks_and_structure_of_a_checkpoint_that_orbax_saved_whole(tmp_path, monkeypatch):
    params = mixed_params()
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 300)  # all matrices are cut
    write(tmp_path / "parts", params)
    orbax.save_params(tmp_path / "whole", params, CONFIG)
    states = [tmp_path / name / "0" / "state" for name in ("parts", "whole")]
    for path in named_leaves(params):
        one, other = (tensorstore.open(zarr(state, path), open=True).result().spec().to_json() for state in states)
        stored = [array["metadata"] | {"compressor": None} for array in (one, other)]  # a port's own is faster
        assert stored[0] == stored[1], path
    one, other = (json.loads((state / "_METADATA").read_text()) for state in states)
    assert one == other


def test_commits_make_files_of_what_they_hold_and_no_more(tmp_path):
    """Not a file for every chunk: a model of 1T would have a million of them."""
    params = random_params(CONFIG, dtype="float32")
    writer = OrbaxWriter(tmp_path, CONFIG, {path: leaf.dtype for path, leaf in named_leaves(params).items()})
    before = sum(path.is_file() for path in tmp_path.rglob("*"))
    writer.write(parts(params))
    assert sum(path.is_file() for path in tmp_path.rglob("*")) <= before + 3
    writer.close()
    assert_trees_equal(orbax.load_params(tmp_path)[0], params)


def test_a_second_writer_goes_on_where_the_first_was_interrupted(tmp_path):
    params = random_params(CONFIG, dtype="float32")
    dtypes = {path: leaf.dtype for path, leaf in named_leaves(params).items()}
    every = list(parts(params))
    OrbaxWriter(tmp_path, CONFIG, dtypes).write(every[::2])
    writer = OrbaxWriter(tmp_path, CONFIG, dtypes)
    assert [writer.is_written(path, index) for path, index, _ in every[:6]] == [True, False] * 3
    writer.write([part for part in every if not writer.is_written(*part[:2])])
    writer.close()
    assert_trees_equal(orbax.load_params(tmp_path)[0], params)


def test_a_leaf_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path, random_params(CONFIG, dtype="float32"))
    reader = OrbaxReader(tmp_path)
    assert reader.read("head").shape == (16, 40)
    for path in (tmp_path / "0" / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(orbax.DamagedCheckpoint, match=r"0/state: \S+ cannot be read: "):
        reader.read("final_norm")


@pytest.mark.parametrize("config", ["ling-2.6-1t", "ling-2.6-flash"])
def test_chunks_of_the_releases_hold_one_expert_and_little_memory(config):
    for path, leaf in named_leaves(model_spec(model_config(config))).items():
        chunk = chunks.chunk_shape(path, leaf.shape, 2)
        assert np.prod(chunk) * 2 <= chunks.CHUNK_BYTES and not np.mod(leaf.shape, chunk).any(), path
        assert chunk[: chunks.stacked_dims(path)] == (1,) * chunks.stacked_dims(path) or len(leaf.shape) == 2
    assert stored_name("a/b") == "params.a.b"


def test_a_checkpoint_that_is_removed_while_it_is_read_does_not_become_zeros(tmp_path):
    write(tmp_path, random_params(CONFIG, dtype="float32"))
    reader = OrbaxReader(tmp_path)
    reader.read("final_norm")
    (tmp_path / "0" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(orbax.DamagedCheckpoint, match="0/state: head cannot be read: "):
        reader.read("head")
    shutil.rmtree(tmp_path / "0")
    with pytest.raises(orbax.DamagedCheckpoint, match="was removed while it was read"):
        reader.read("head")


@pytest.mark.parametrize("form", [{"use_ocdbt": False}, {"use_zarr3": True}], ids=str)
def test_other_formats_of_orbax_are_read(tmp_path, form):
    params = mixed_params()
    handlers = {"state": ocp.PyTreeCheckpointHandler(**form), "meta": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(tmp_path, item_handlers=handlers) as manager:
        saved = {"state": ocp.args.PyTreeSave({"params": params}), "meta": ocp.args.JsonSave(record())}
        manager.save(3, args=ocp.args.Composite(**saved))
    reader = OrbaxReader(tmp_path)
    for path, leaf in named_leaves(params).items():
        assert reader.read(path).tobytes() == leaf.tobytes(), path


def record():
    return {"model": orbax.meta_record(CONFIG)["model"]}


def test_names_of_folders_are_taken_as_they_are(tmp_path):
    params, folder = random_params(CONFIG, dtype="float32"), tmp_path / "50%25 off" / "a|b ü #1?"
    write(folder, params)
    assert OrbaxReader(folder).read("head").tobytes() == params["head"].tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["50%25 off"]


@pytest.mark.parametrize("name", ["run[1]", "back\\slash"])
def test_a_folder_in_which_orbax_loses_what_it_saves_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="Orbax cannot save below"):
        orbax.open_manager(tmp_path / name, keep=1)
    assert not list(tmp_path.iterdir())


def test_parameters_that_the_model_does_not_have_are_named(tmp_path):
    write(tmp_path, random_params(CONFIG, dtype="float32"))
    fewer = json.dumps({"model": record()["model"] | {"mtp_depth": 0}})
    (tmp_path / "0" / "meta" / "metadata").write_text(fewer)
    (tmp_path / "0" / "manifest.json").unlink()
    with pytest.raises(orbax.DamagedCheckpoint, match=r"not those of its model: mtp/\S+ is in only one of them"):
        OrbaxReader(tmp_path)
