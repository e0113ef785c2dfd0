"""Models go between formats in gs:// as between folders: read by ranges, written as whole objects."""

import json

import pytest

from ling_jax import paths
from ling_jax.checkpoint import chunks, load_hf, load_hf_config, orbax, port, save_hf, transfer
from ling_jax.checkpoint.folder import check_model_folder
from ling_jax.checkpoint.hf_reader import HfReader
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.orbax_parts import OrbaxReader, OrbaxWriter
from ling_jax.checkpoint.parts import TreeReader
from ling_jax.checkpoint.steps import steps_in
from ling_jax.files import upload_folder
from tests.helpers.tiny import assert_trees_equal, random_params, tiny_config

CONFIG = tiny_config(num_layers=2, mtp_depth=1, compute_dtype="float32")
PARAMS = random_params(CONFIG, dtype="float32")
SHARD = 20_000


class Interrupted(Exception):
    pass


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(transfer, "BATCH_BYTES", 3_000)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 500)


def export(target, *, after=0):
    """A port of PARAMS, interrupted after so many batches; returns how many bands were left to write."""
    reader, left = TreeReader(PARAMS, CONFIG), []
    with port.resumable_folder(target, {}, resume=True) as partial, port.staged_folder(partial) as folder:
        store = target if paths.is_remote(target) else None
        writer = HfWriter(folder, CONFIG, reader.dtypes, max_shard_bytes=SHARD, store=store)
        left += [b for b in transfer.bands(reader, CONFIG, reader.dtypes) if not writer.is_written(b.leaf, b.index)]
        transfer.transfer(reader, writer, progress=stop(after))
    return len(left)


def ingest(target, *, after=0):
    reader, left = TreeReader(PARAMS, CONFIG), []
    with port.resumable_folder(target, {}, resume=True) as partial:
        writer = OrbaxWriter(partial / "checkpoints", CONFIG, reader.dtypes)
        left += [b for b in transfer.bands(reader, CONFIG, reader.dtypes) if not writer.is_written(b.leaf, b.index)]
        transfer.transfer(reader, writer, progress=stop(after))
    return len(left)


def stop(after):
    batches = []

    def progress(nbytes):
        batches.append(nbytes)
        if len(batches) == after:
            raise Interrupted

    return progress


def test_an_interrupted_export_goes_on_at_the_next_shard_and_ends_with_the_same_bytes(gs, tmp_path, small_batches):
    every = export(tmp_path / "hf")
    with pytest.raises(Interrupted):
        export(gs, after=15)
    assert port.is_interrupted(gs)
    whole = [name for name in paths.names_in(gs) if name.endswith(".safetensors")]
    assert whole and "config.json" not in paths.names_in(gs)
    assert 0 < export(gs) < every
    assert not port.is_interrupted(gs)
    for folder in (tmp_path / "hf", gs):
        assert paths.files_below(folder) == paths.files_below(tmp_path / "hf")
    for name in paths.files_below(gs):
        assert (gs / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name
    assert_trees_equal(load_hf(gs)[0], PARAMS)


def test_an_interrupted_import_goes_on_and_is_a_checkpoint_when_it_is_whole(gs, small_batches):
    with pytest.raises(Interrupted):
        ingest(gs, after=3)
    assert port.is_interrupted(gs) and steps_in(gs / "checkpoints") == []
    with (
        pytest.raises(ValueError, match="was begun with another of"),
        port.resumable_folder(gs, {"of": 1}, resume=True),
    ):
        pass
    every = len([*transfer.bands(TreeReader(PARAMS, CONFIG), CONFIG, TreeReader(PARAMS, CONFIG).dtypes)])
    assert 0 < ingest(gs) < every
    assert not port.is_interrupted(gs) and steps_in(gs / "checkpoints") == [0]
    assert_trees_equal(orbax.load_params(gs / "checkpoints")[0], PARAMS)
    assert_trees_equal(OrbaxReader(gs / "checkpoints").layer(1), TreeReader(PARAMS, CONFIG).layer(1))


def test_a_folder_of_the_hub_is_read_by_ranges(gs, tmp_path, monkeypatch):
    save_hf(PARAMS, CONFIG, tmp_path / "hf")
    upload_folder(tmp_path / "hf", gs)
    check_model_folder(gs)
    assert load_hf_config(gs) == load_hf_config(tmp_path / "hf")
    asked, read = [], paths.store().cat_file
    monkeypatch.setattr(paths.store(), "cat_file", lambda path, *ends: asked.append(ends) or read(path, *ends))
    reader = HfReader(gs)
    header = sum(end - begin for begin, end in asked)
    asked.clear()
    layer = reader.layer(1)
    wanted = HfReader(tmp_path / "hf").layer(1)
    assert_trees_equal(layer, wanted)
    size = (gs / "model.safetensors").stat().length
    assert 0 < sum(end - begin for begin, end in asked) < size / 2 and header <= size
    content = (gs / "model.safetensors").read_bytes()
    for bad, message in (
        (content[:-10], r"gs://.*/model.safetensors \(\d+ bytes\) is not a whole safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"", "is not a whole safetensors file"),
        ((2**40).to_bytes(8, "little") + b"{}", "is not a whole safetensors file"),
    ):
        (gs / "model.safetensors").write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            HfReader(gs)


def test_a_model_is_saved_into_a_store(gs):
    save_hf(PARAMS, CONFIG, gs)
    assert json.loads((gs / "config.json").read_bytes())["num_hidden_layers"] == 2
    assert_trees_equal(load_hf(gs)[0], PARAMS)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        save_hf(PARAMS, CONFIG, gs)
