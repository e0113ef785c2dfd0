"""Which tensors a folder has: index, duplicates, sizes, MTP and dtypes."""

import json
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ling_jax.checkpoint import load_hf, load_hf_config, save_hf
from ling_jax.checkpoint.folder import check_model_folder
from ling_jax.checkpoint.layers import open_layers
from tests.helpers.hf_folders import (
    SOURCE,
    WEIGHTS,
    copy_of_source,
    edit_config,
    edit_tensors,
    read_tensors,
    warnings,
    write_raw,
    write_tensors,
)
from tests.helpers.tiny import assert_trees_equal, random_params, tiny_config

INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
WHOLE = (load_hf, open_layers)
READERS = (*WHOLE, load_hf_config)


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture, to be damaged."""
    return copy_of_source(tmp_path)


@pytest.fixture
def sharded(folder):
    """The same in three files with an index."""
    tensors = read_tensors(folder)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        file = f"model-0000{number + 1}-of-00003.safetensors"
        write_tensors(folder / file, {name: tensors[name] for name in names[number::3]})
        weight_map |= dict.fromkeys(names[number::3], file)
    write_index(folder, weight_map)
    return folder


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_index(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def assert_refused(folder, message, error=ValueError, readers=READERS):
    """By every reader, in one line that names the folder, and at once."""
    for reader in readers:
        begun = time.monotonic()
        with pytest.raises(error, match=message) as refusal:
            reader(folder)
        assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)
        assert time.monotonic() - begun < 2


def assert_not_permitted(folder):
    """To a user who may not read what root may."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        assert_refused(folder, "(?i)permission denied", PermissionError)
    finally:
        os.seteuid(os.getuid())


def assert_is_source(folder):
    assert_trees_equal(load_hf(folder)[0], load_hf(SOURCE)[0])


# Files and the index


def test_a_tensor_in_two_files_is_refused_without_an_index(folder):
    write_tensors(folder / "model-old.safetensors", {NORM: np.zeros(64, np.float32)})
    assert_refused(folder, rf"{NORM} is in model-old.safetensors and in {WEIGHTS}, and no index decides; remove")


def test_the_index_decides_over_a_shard_that_is_left_over(sharded, capfd):
    write_tensors(sharded / "model-00000-of-00002.safetensors", {NORM: np.zeros(64, np.float32)})
    assert_is_source(sharded)
    (line,) = warnings(capfd)
    assert "model-00000-of-00002.safetensors ignored" in line


def test_a_tensor_in_two_files_of_the_index_is_read_where_it_says(sharded):
    other = next(file for file in set(read_index(sharded).values()) if file != read_index(sharded)[NORM])
    write_tensors(sharded / other, safetensors.numpy.load_file(sharded / other) | {NORM: np.zeros(64, np.float32)})
    assert_is_source(sharded)


@pytest.mark.parametrize(
    "place",
    ["x" * 300 + ".safetensors", "../other/b.safetensors", "/tmp/b.safetensors", "a/../../b.safetensors", "", "."],
)
def test_a_file_outside_of_the_folder_is_refused(sharded, place):
    write_index(sharded, read_index(sharded) | {NORM: place})
    assert_refused(
        sharded, rf"weight_map\['{NORM}'\] is '{place:.199}.*(leaves the folder|no safetensors file|longer than 255)"
    )


@pytest.mark.parametrize("place", [3, None, ["a"], "pytorch_model.bin", "a\0.safetensors"])
def test_a_weight_map_of_other_things_than_files_is_refused(sharded, place):
    write_index(sharded, read_index(sharded) | {NORM: place})
    assert_refused(sharded, rf"{INDEX}: weight_map\['{NORM}'\] is .*expected|only those are read")


def test_links_as_in_the_cache_of_hugging_face_are_followed(sharded, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(sharded.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert_is_source(snapshot)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "weight_map is missing; expected an object"),
        (b'{"weight_map": []}', "weight_map is a JSON list"),
        (b'{"weight_map": {}}', "weight_map is a JSON dict"),
        (b'{"weight_map": "a"}', "weight_map is a JSON str"),
        (b"[]", "is a JSON list; expected an object with weight_map"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON: .*recursion"),
        (b'{"weight_map": ' + b"[" * 200_000, "is not JSON: .*recursion"),
        (b'{"weight_map": {"a": ' + b"9" * 5000 + b"}}", "is not JSON: .*4300"),
        (b'{"weight_map": {"\xff": "a.safetensors"}}', "is not JSON: .*utf-8"),
    ],
)
def test_a_broken_index_is_one_line(sharded, content, message):
    (sharded / INDEX).write_bytes(content)
    assert_refused(sharded, f"{INDEX}.*{message}")


def test_a_stale_index_is_rebuilt_with_a_warning(folder, capfd):
    """Files that are not there, while one that is there holds all: a folder that was put together again."""
    write_index(folder, dict.fromkeys(read_tensors(folder), "model-00001-of-00002.safetensors"))
    assert_is_source(folder)
    (line,) = warnings(capfd)
    assert f"{INDEX} is stale" in line and "model-00001-of-00002.safetensors is not there" in line


def test_an_index_that_names_wrong_files_is_rebuilt_with_a_warning(sharded, capfd):
    weight_map = read_index(sharded)
    write_index(sharded, dict(zip(weight_map, reversed(weight_map.values()), strict=True)))
    assert_is_source(sharded)
    (line,) = warnings(capfd)
    assert f"{INDEX} is stale" in line


def test_a_missing_shard_is_named_whatever_else_is_there(sharded):
    gone = read_index(sharded)[NORM]
    (sharded / gone).unlink()
    message = f"{gone} is missing, though {INDEX} lists it"
    assert_refused(sharded, message, FileNotFoundError, readers=WHOLE)


def test_a_tensor_that_only_the_index_lacks_is_read_with_a_warning(sharded, capfd):
    weight_map = read_index(sharded)
    file = weight_map.pop(NORM)
    write_index(sharded, weight_map)
    assert_is_source(sharded)
    (line,) = warnings(capfd)
    assert f"{INDEX} is stale ({NORM} of {file} is not in it)" in line


def test_an_index_may_spell_one_file_in_several_ways(sharded, capfd):
    weight_map = read_index(sharded)
    write_index(sharded, {name: "./" * (i % 2) + file for i, (name, file) in enumerate(weight_map.items())})
    assert_is_source(sharded)
    assert not warnings(capfd)


def test_an_index_that_names_two_files_for_a_tensor_is_refused(sharded):
    text = (sharded / INDEX).read_text()
    (sharded / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{"{NORM}": "other.safetensors", '))
    assert_refused(sharded, rf"{INDEX} is not JSON: '{NORM}' stands twice, as 'other.safetensors' and as 'model-0")


@pytest.mark.parametrize("file", ["a\nb.safetensors", "a" * 243 + ".safetensors", "\ud800.safetensors"])
def test_a_stale_index_with_odd_names_is_one_short_line(sharded, capfd, file):
    write_index(sharded, read_index(sharded) | {"x.inv_freq": file})
    assert_is_source(sharded)
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{INDEX} is stale" in line and len(line) < 700


def test_an_adapter_beside_the_weights_is_left_out_and_said(folder, capfd):
    write_tensors(folder / "adapter_model.safetensors", {"base_model.x.lora_A.weight": np.zeros((2, 2), np.float32)})
    assert_is_source(folder)
    (line,) = warnings(capfd)
    assert "adapter_model.safetensors ignored: an adapter is not merged" in line
    (folder / WEIGHTS).unlink()
    assert_refused(folder, "found adapter_model.safetensors, an adapter: merge it into its base", FileNotFoundError)


def test_a_stale_index_and_a_tensor_twice_are_refused(sharded):
    write_tensors(sharded / "old.safetensors", {NORM: np.zeros(64, np.float32)})
    write_index(sharded, read_index(sharded) | {NORM: "gone.safetensors"})
    assert_refused(sharded, rf"{NORM} is in model-.* and in old.safetensors, and {INDEX} is stale")


def test_a_tensor_under_two_names_is_refused(folder):
    name = "model.layers.0.attention.dense.weight"
    edit_tensors(folder, lambda t: t | {name.replace("dense", "o_proj"): t[name]})
    assert_refused(folder, "weight is model.*weight of .* under another name; remove one")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(0 bytes\) is not a whole safetensors file"),
        (struct.pack("<Q", 2**60), "is not a whole safetensors file"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "is not a whole safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "is not a whole safetensors file"),
        (struct.pack("<Q", 101_000_000) + b" " * 1000, "is not a whole safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer.*git lfs pull"),
    ],
)
def test_a_broken_header_is_one_line(folder, content, message):
    (folder / WEIGHTS).write_bytes(content)
    assert_refused(folder, f"{WEIGHTS} .*{message}")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-1, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
        {"dtype": "F99\n", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32"},
        3,
    ],
)
def test_a_header_that_lies_is_one_line(folder, entry):
    write_raw(folder / WEIGHTS, json.dumps({"a": entry}).encode(), b"\0" * 8)
    assert_refused(folder, f"{WEIGHTS} .* is not a whole safetensors file")


def test_weights_of_other_formats_are_named(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert_refused(folder, r"found pytorch_model.bin, and only \*.safetensors files are read", FileNotFoundError)


def test_names_without_a_file_behind_them_are_named(folder):
    (folder / WEIGHTS).rename(folder / "MODEL.SAFETENSORS")
    assert_refused(folder, r"found MODEL.SAFETENSORS, and only \*.safetensors files are read", FileNotFoundError)
    (folder / WEIGHTS).symlink_to("../../blobs/gone")
    assert_refused(folder, "found MODEL|model.safetensors is a link to a file that is not there", FileNotFoundError)
    (folder / "MODEL.SAFETENSORS").unlink()
    assert_refused(folder, "model.safetensors is a link to a file that is not there", FileNotFoundError)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    assert_refused(folder, "model.safetensors is a folder", FileNotFoundError)


def test_tensor_names_cannot_break_or_fill_a_message(folder):
    write_tensors(folder / "a.safetensors", {"x\ny": np.zeros(1, np.float32)})
    write_tensors(folder / "b.safetensors", {"x\ny": np.zeros(1, np.float32)})
    assert_refused(folder, r"'x\\ny' is in a.safetensors and in b.safetensors")
    (folder / "b.safetensors").unlink()
    write_tensors(folder / "a.safetensors", {"x" * 100_000: np.zeros(1, np.float32)})
    assert_refused(folder, "1 tensors belong to no part of the model: x{200}…$", readers=WHOLE)


def test_names_of_another_layout_are_shown(folder):
    edit_tensors(folder, lambda t: {name.removeprefix("model."): value for name, value in t.items()})
    assert_refused(folder, r"the tensors have 0 layers \(they are layers.0.attention.dense.weight, layers.0")


def test_checkpoints_of_another_program_make_no_workdir_of_a_folder(folder):
    (folder / "checkpoints").mkdir()
    assert_trees_equal(open_layers(folder).layer(0), open_layers(SOURCE).layer(0))


def test_hidden_files_are_no_shards(folder):
    (folder / "._model.safetensors").write_bytes(b"resource fork")
    assert_is_source(folder)


def test_permissions_are_called_permissions():
    """Not "download it again"."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("config.json", WEIGHTS):
            shutil.copyfile(SOURCE / file, folder / file)
            (folder / file).chmod(0o644)
        for file in (WEIGHTS, "config.json"):
            (folder / file).chmod(0)
            assert_not_permitted(folder)
            (folder / file).chmod(0o644)


def test_weights_behind_a_closed_folder_are_no_missing_weights():
    """The blobs of another user's cache."""
    with tempfile.TemporaryDirectory() as name:
        folder, blobs = Path(name), Path(name) / "blobs"
        folder.chmod(0o755)
        blobs.mkdir()
        shutil.copyfile(SOURCE / "config.json", folder / "config.json")
        shutil.copyfile(SOURCE / WEIGHTS, blobs / "0")
        (folder / WEIGHTS).symlink_to("blobs/0")
        blobs.chmod(0)
        try:
            assert_not_permitted(folder)
        finally:
            blobs.chmod(0o755)


# Sizes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 8192}, "num_experts of config.json is 8192, the tensors have 16 experts"),
        (
            {"num_experts": 32},
            r"is 32, the tensors have 16 experts \(mlp.experts.0 to mlp.experts.15\)",
        ),
        ({"num_hidden_layers": 1000}, "num_hidden_layers of config.json is 1000, the tensors have 4 layers"),
        ({"num_hidden_layers": 3}, "num_hidden_layers of config.json is 3, the tensors have 4 layers"),
        (
            {"num_nextn_predict_layers": 16},
            "num_nextn_predict_layers of config.json is 16, but .* holds 0",
        ),
    ],
)
def test_sizes_are_compared_with_the_tensors_before_anything_is_built(folder, fields, message):
    edit_config(folder, **fields)
    assert_refused(folder, message)


def test_layer_numbers_that_a_file_makes_up_are_named(folder):
    name = f"model.layers.{'9' * 50}.x\n"
    edit_tensors(folder, lambda t: t | {name: np.zeros(1, np.float32)})
    assert_refused(folder, r"1 tensors belong to no part of the model: 'model.layers.9+.x\\n'", readers=WHOLE)


# MTP


@pytest.fixture
def with_mtp(tmp_path):
    config = tiny_config(mtp_depth=1, compute_dtype="float32")
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "mtp")
    return tmp_path / "mtp"


def only(keep):
    return lambda tensors: {name: value for name, value in tensors.items() if keep(name)}


def test_pruned_mtp_is_named_as_such(with_mtp):
    edit_tensors(with_mtp, only(lambda name: ".layers.4." not in name))
    assert_refused(with_mtp, "num_nextn_predict_layers of config.json is 1, but of MTP layers .*holds 0.*set it to 0")
    edit_config(with_mtp, num_nextn_predict_layers=0)
    assert load_hf(with_mtp)[1].mtp_depth == 0


def test_mtp_that_is_pruned_in_part_is_named_as_such(with_mtp):
    edit_tensors(with_mtp, only(lambda name: not name.endswith(("enorm.weight", "layers.4.mlp.gate.weight"))))
    message = "2 tensors of the MTP layers are missing that num_nextn_predict_layers 1 asks for: .*4.enorm.weight.*to 0"
    assert_refused(with_mtp, message, readers=WHOLE)


def test_pruned_mtp_loads_without_its_file_which_the_index_names(with_mtp, capfd):
    tensors = read_tensors(with_mtp)
    write_index(with_mtp, {name: "mtp.safetensors" if ".layers.4." in name else WEIGHTS for name in tensors})
    edit_tensors(with_mtp, only(lambda name: ".layers.4." not in name))
    with pytest.raises(FileNotFoundError, match=r"mtp\.safetensors is missing, though"):
        load_hf(with_mtp)
    edit_config(with_mtp, num_nextn_predict_layers=0)
    assert "mtp" not in load_hf(with_mtp)[0]
    assert [INDEX in line for line in warnings(capfd)] == [True]


def test_mtp_that_the_config_does_not_count_is_left_out_and_said(with_mtp, capfd):
    wanted = load_hf(with_mtp)[0]
    edit_config(with_mtp, num_nextn_predict_layers=0)
    found, config = load_hf(with_mtp)
    del wanted["mtp"]
    assert_trees_equal(found, wanted)
    assert config.mtp_depth == 0 and open_layers(with_mtp).config == config
    line = warnings(capfd)[0]
    assert "num_nextn_predict_layers is 0" in line and "tensors of MTP layers are left out" in line


def test_mtp_that_is_counted_as_a_layer_is_named(with_mtp):
    edit_config(with_mtp, num_nextn_predict_layers=0, num_hidden_layers=5)
    assert_refused(with_mtp, "num_hidden_layers of config.json is 5 with model.layers.4, an MTP layer; expected 4")


# Slopes, dtypes


@pytest.mark.parametrize(
    "name", ["model.layers.4.attention.slope", "attention.slope", "model.layers.x.attention.slope", "model.slope"]
)
def test_slopes_that_belong_to_no_lightning_layer_are_ignored(folder, name):
    edit_tensors(folder, lambda t: t | {name: np.full(4, np.nan, np.float32)})
    assert load_hf(folder)[1].slope_layer_offset == 0
    assert_is_source(folder)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "int32"])
def test_integers_are_no_weights(folder, dtype):
    edit_tensors(folder, lambda t: t | {NORM: t[NORM].astype(dtype)})
    stored = {"int8": "I8", "int64": "I64", "uint8": "U8", "int32": "I32"}[dtype]
    assert_refused(folder, f"{NORM} is {stored}; weights are one of F64, F32, F16, BF16", readers=WHOLE)


def test_a_leaf_of_several_dtypes_is_kept_in_the_wider(folder):
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    wanted = read_tensors(folder)[name].astype(np.float64) + 1e-12
    edit_tensors(folder, lambda t: t | {name: wanted})
    save_hf(*load_hf(folder), folder.parent / "out")
    np.testing.assert_array_equal(read_tensors(folder.parent / "out")[name], wanted)


@pytest.mark.parametrize("change", ["cut", "written in place", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read_is_named(folder, change):
    reader, path = open_layers(folder), folder / "model.safetensors"
    content = path.read_bytes()
    if change == "replaced":
        (folder / "new").write_bytes(content)
        (folder / "new").replace(path)
    elif change == "removed":
        path.unlink()
    else:
        path.write_bytes(content[:2000] if change == "cut" else content[:-4] + b"1234")
    message = "model.safetensors cannot be read: No such file" if change == "removed" else "has changed while it was"
    with pytest.raises((OSError, ValueError), match=message):
        reader.top("head")


def test_a_cache_of_the_hub_names_its_snapshot(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cache" / "snapshots" / "1a2b")
    with pytest.raises(FileNotFoundError, match=r"a cache of the Hub: name .*/snapshots/1a2b"):
        check_model_folder(tmp_path / "cache")
