"""Weights go between Hugging Face folders and parameters without loss, and what is wrong is named."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ling_jax import spec
from ling_jax.checkpoint import hf_tensors, hf_writer, load_hf, save_hf
from ling_jax.config import Yarn
from ling_jax.model import model_spec
from tests.conftest import FIXTURES
from tests.helpers.tiny import FAMILIES, assert_trees_equal, random_params, tiny_config

SOURCE = FIXTURES / "v25_yarn_mscale"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture, to be damaged."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", WEIGHTS):
        (tmp_path / "model" / name).write_bytes((SOURCE / name).read_bytes())
    return tmp_path / "model"


def stored_tensors(folder):
    """{name: tensor} of all files of a folder."""
    return {k: v for file in folder.glob("*.safetensors") for k, v in safetensors.numpy.load_file(file).items()}


def assert_tensors_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert found[name].tobytes() == value.tobytes(), name


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder, edit):
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    safetensors.numpy.save_file(edit(tensors) or tensors, folder / WEIGHTS)


def round_to_bfloat16(tensors):
    """The official releases: bfloat16, routers' biases in float32."""
    return {k: v if k.endswith("expert_bias") else v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}


# There and back


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [5 * 2**30, 100_000], ids=["one file", "shards"])
def test_every_tensor_survives_byte_for_byte(folder, tmp_path, monkeypatch, stored, shard_bytes):
    if stored == "bfloat16":
        edit_tensors(folder, round_to_bfloat16)
    monkeypatch.setattr(hf_writer, "MAX_SHARD_BYTES", shard_bytes)
    params, config = load_hf(folder)
    save_hf(params, config, tmp_path / "out")
    assert_tensors_equal(stored_tensors(tmp_path / "out"), stored_tensors(folder))
    again, same = load_hf(tmp_path / "out")
    assert same == config
    assert_trees_equal(again, params)


def test_all_fixtures_survive_byte_for_byte(golden, tmp_path):
    for source in sorted(path.parent for path in golden.glob("*/config.json")):
        save_hf(*load_hf(source), tmp_path / source.name)
        assert_tensors_equal(stored_tensors(tmp_path / source.name), stored_tensors(source))


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_of_many_rows_survive(tmp_path, family):
    """More than are written at a time."""
    rows = 2 * hf_writer.PIECE_ROWS + 3
    config = tiny_config(family, vocab_size=rows, ffn_size=rows, compute_dtype="float32")
    params = random_params(config, dtype="float32")
    save_hf(params, config, tmp_path / "out")
    assert stored_tensors(tmp_path / "out")["lm_head.weight"].tobytes() == np.asarray(params["head"]).T.tobytes()
    assert_trees_equal(load_hf(tmp_path / "out")[0], params)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_all_parts_of_all_families_survive(tmp_path, family, biases):
    config = tiny_config(
        family, num_layers=7, mtp_depth=2, qkv_bias=biases, out_bias=biases, qk_norm=biases, compute_dtype="float32"
    )
    params = random_params(config, dtype="float32")
    save_hf(params, config, tmp_path / "out")
    again, read = load_hf(tmp_path / "out")
    assert_trees_equal(again, params)
    assert model_spec(read).keys() == model_spec(config).keys() and read.slope_layer_offset == 0


def test_what_is_saved_is_what_the_config_says(tmp_path):
    config = tiny_config(slope_layer_offset=-1, rope_scaling=Yarn(4.0, 32, mscale=1.0), norm_eps=1e-3)
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["slope_layer_offset"] == -1 and written["rope_scaling"]["factor"] == 4.0
    assert load_hf(tmp_path / "out")[1].slope_layer_offset == -1


def test_gradients_have_official_names_too():
    params, config = load_hf(SOURCE)
    assert_tensors_equal(hf_tensors(params, config), stored_tensors(SOURCE))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtype_is_of_the_parameters_and_of_compute(dtype):
    params, config = load_hf(SOURCE, dtype=dtype)
    assert config.compute_dtype == dtype
    assert {leaf.dtype.name for leaf in spec.named_leaves(params).values()} == {dtype}
    assert load_hf(SOURCE)[1].compute_dtype == "float32"


# Shards


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_writer, "MAX_SHARD_BYTES", 100_000)
    save_hf(*load_hf(SOURCE), tmp_path / "sharded")
    return tmp_path / "sharded"


def test_the_index_names_every_tensor_once_in_its_file(sharded):
    index = json.loads((sharded / INDEX).read_text())
    files = {file.name: safetensors.numpy.load_file(file) for file in sharded.glob("*.safetensors")}
    assert len(files) > 5
    assert index["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(v.nbytes for tensors in files.values() for v in tensors.values())
    assert sorted(files) == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]


def test_no_shard_is_larger_than_the_limit(sharded):
    for file in sharded.glob("*.safetensors"):
        assert sum(value.nbytes for value in safetensors.numpy.load_file(file).values()) <= 100_000


def test_one_file_has_no_index(tmp_path):
    save_hf(*load_hf(SOURCE), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", WEIGHTS}


def test_a_missing_shard_is_named(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"{gone.name} is missing, though {INDEX} lists it"):
        load_hf(sharded)


def test_a_broken_index_is_named(sharded):
    (sharded / INDEX).write_text("{")
    with pytest.raises(ValueError, match=f"{INDEX} is not JSON"):
        load_hf(sharded)


# Names


@pytest.mark.parametrize(
    ("official", "alias"),
    [
        ("mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias"),
        ("attention.dense.weight", "attention.o_proj.weight"),
    ],
)
def test_other_names_of_a_tensor_are_read(folder, official, alias):
    edit_tensors(folder, lambda tensors: {name.replace(official, alias): value for name, value in tensors.items()})
    assert any(alias in name for name in stored_tensors(folder))
    assert_trees_equal(load_hf(folder)[0], load_hf(SOURCE)[0])


@pytest.mark.parametrize(
    "extra", ["model.rotary_emb.inv_freq", "model.layers.1.attention.rotary_emb.inv_freq", "model.mtp.layers.0.weight"]
)
def test_buffers_and_copies_are_passed_over(folder, extra):
    edit_tensors(folder, lambda tensors: tensors | {extra: np.ones(3, np.float32)})
    assert_trees_equal(load_hf(folder)[0], load_hf(SOURCE)[0])


def slope(layer, offset, heads=4, layers=4):
    """Of the released kind: 2^(-8h/H) times the layer's factor, positive, [H, 1, 1]."""
    factor = 1 - (layer + offset) / (layers - 1) + 1e-5
    return (2.0 ** (-8 / heads * np.arange(1, heads + 1)) * factor).astype(np.float32).reshape(-1, 1, 1)


@pytest.mark.parametrize("offset", [0, -1])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16])
def test_a_stored_slope_decides_the_convention(folder, offset, sign, stored):
    names = {f"model.layers.{n}.attention.slope": (sign * slope(n, offset)).astype(stored) for n in range(3)}
    edit_tensors(folder, lambda tensors: tensors | names)
    assert load_hf(folder)[1].slope_layer_offset == offset


def test_the_config_decides_before_a_stored_slope(folder):
    edit_config(folder, slope_layer_offset=-1)
    edit_tensors(folder, lambda tensors: tensors | {"model.layers.2.attention.slope": slope(2, 0)})
    assert load_hf(folder)[1].slope_layer_offset == -1


def test_without_a_slope_the_convention_is_that_of_the_engines():
    assert "slope_layer_offset" not in json.loads((SOURCE / "config.json").read_text())
    assert load_hf(SOURCE)[1].slope_layer_offset == 0


@pytest.mark.parametrize("wrong", [slope(2, 0.5), slope(2, 0)[:3]], ids=["between", "of three heads"])
def test_a_slope_of_neither_convention_is_an_error(folder, wrong):
    edit_tensors(folder, lambda tensors: tensors | {"model.layers.2.attention.slope": wrong})
    with pytest.raises(ValueError, match=r"layers.2.attention.slope fits neither slope convention of layer 2"):
        load_hf(folder)


# Damage


def truncate(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def remove(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "config.json is missing"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing: .* is not a Hugging Face model folder"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is a JSON list; expected an object"),
        (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), r"\(0 bytes\) is not a whole safetensors file"),
        (truncate, rf"{WEIGHTS} \(\d+ bytes\) is not a whole safetensors file: .*; copy or download it again"),
        (lambda f: edit_tensors(f, remove("lm_head.weight")), "1 tensors are missing .*: lm_head.weight"),
        (
            lambda f: edit_tensors(f, remove("model.layers.1.mlp.experts.7.up_proj.weight")),
            "1 tensors are missing .*: model.layers.1.mlp.experts.7.up_proj.weight",
        ),
        (
            lambda f: edit_tensors(f, lambda t: t | {"extra": np.ones(1, np.float32)}),
            "1 tensors belong to no part of the model: extra",
        ),
        (
            lambda f: edit_tensors(f, lambda t: t | {"lm_head.weight_scale_inv": np.ones(1, np.float32)}),
            "lm_head.weight_scale_inv .F32. is the scale of no FP8 weight: lm_head.weight is F32",
        ),
        (
            lambda f: edit_config(f, vocab_size=300),
            r"(lm_head|word_embeddings).weight is \(256, 64\); config.json makes it \(300, 64\)",
        ),
        (lambda f: edit_config(f, num_experts=8), r"num_experts of config.json is 8, the tensors have 16 experts"),
        (lambda f: edit_config(f, group_norm_size=3), r"(num_norm_groups|group_norm_size) "),
        (lambda f: edit_config(f, architectures=["BailingMoeV3ForCausalLM"]), r"is Ling 3\.0"),
        (
            lambda f: edit_config(f, num_hidden_layers=5),
            "num_hidden_layers of config.json is 5, .* have 4 layers",
        ),
        (lambda f: edit_config(f, q_lora_rank=None), r"missing that config.json asks for: .*q_proj.weight"),
        (lambda f: edit_config(f, use_qkv_bias=True), r"missing that config.json asks for: .*bias"),
    ],
)
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_hf(folder)


# Saving


@pytest.mark.parametrize("failing", ["_begin", "_end", "close"])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty folder"])
def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch, failing, exists):
    params, config = load_hf(SOURCE)
    if exists:
        (tmp_path / "out").mkdir()
    monkeypatch.setattr(hf_writer.HfWriter, failing, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_hf(params, config, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if exists else [])


def test_a_save_that_fails_between_shards_leaves_nothing(tmp_path, monkeypatch):
    """The second file cannot be written: a folder stands where it should go."""
    params, config = load_hf(SOURCE)
    monkeypatch.setattr(hf_writer, "MAX_SHARD_BYTES", 500_000)
    real = hf_writer.HfWriter._end

    def end(writer, shard):
        (writer._folder / f"{writer.shards[1].file}.partial").mkdir(exist_ok=True)
        real(writer, shard)

    monkeypatch.setattr(hf_writer.HfWriter, "_end", end)
    with pytest.raises(OSError, match="cannot be written: Is a directory"):
        save_hf(params, config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="exists and is not empty; save into a new folder"):
        save_hf(*load_hf(SOURCE), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    save_hf(*load_hf(SOURCE), tmp_path / "out")
    assert_trees_equal(load_hf(tmp_path / "out")[0], load_hf(SOURCE)[0])


def test_a_folder_of_the_user_beside_it_is_left_alone(tmp_path):
    (tmp_path / "out.partial").mkdir()
    save_hf(*load_hf(SOURCE), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", WEIGHTS}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]
