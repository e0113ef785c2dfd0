"""FP8 folders are read as what their scales make of them; other quantised folders are refused by their format."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from ling_jax import model
from ling_jax.checkpoint import load_hf, load_hf_config, save_hf
from ling_jax.checkpoint.layers import open_layers
from ling_jax.checkpoint.parts import TOP, TreeReader
from ling_jax.checkpoint.quantised import WeightFormat, weight_format
from ling_jax.checkpoint.safetensors_file import SafetensorsFile
from ling_jax.spec import named_leaves
from tests.conftest import FIXTURES, QUICK
from tests.helpers.hf_folders import (
    E4M3,
    compressed_config,
    dequantise_by_hand,
    edit_config,
    fp8_block_config,
    is_quantised,
    quantise,
    read_tensors,
    write_tensors,
)
from tests.helpers.tiny import FAMILIES, assert_trees_equal, random_params, tiny_config

BLOCK = (128, 128)
# name -> quantization_config, block (None: the whole dimension), end of the scale's name, scale's shape, its dtype
FORMS = {
    "blocks": (fp8_block_config(), BLOCK, "_scale_inv", np.shape, "float32"),
    "small blocks": (fp8_block_config((48, 40)), (48, 40), "_scale_inv", np.shape, "float32"),
    "channels [out, 1]": (compressed_config(), (1, None), "_scale", np.shape, "bfloat16"),
    "channels [out]": (compressed_config(), (1, None), "_scale", np.size, "float32"),
    "compressed-tensors in blocks": (
        compressed_config("block", structure=[128, 128]),
        BLOCK,
        "_scale",
        np.shape,
        "float32",
    ),
    "whole tensors []": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        (None, None),
        "_scale",
        lambda _: (),
        "float16",
    ),
    "whole tensors [1]": (compressed_config("tensor"), (None, None), "_scale", np.size, "float32"),
}


def quantise_folder(source, target, form, *, fp8=E4M3, only=is_quantised):
    """Writes the folder in FP8 into `target`/fp8, and what a reader should find into `target`/plain in fp32."""
    config, block, suffix, scale_shape, scale_dtype = FORMS[form]
    fields = json.loads((source / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    stored, plain = {}, {}
    for name, value in read_tensors(source).items():
        if only(name, value):
            sizes = tuple(part or whole for part, whole in zip(block, value.shape, strict=True))
            stored[name], scale = quantise(value, sizes, fp8, scale_dtype)
            stored[name + suffix] = scale.reshape(scale_shape(scale))
            plain[name] = dequantise_by_hand(stored[name], scale, sizes)
        else:
            stored[name] = value if name.endswith("expert_bias") else value.astype(ml_dtypes.bfloat16)
            plain[name] = stored[name].astype(np.float32)
    for kind, tensors in (("fp8", stored), ("plain", plain)):
        (target / kind).mkdir(parents=True)
        write_tensors(target / kind / "model.safetensors", tensors)
        extra = {"quantization_config": config} if kind == "fp8" else {}
        (target / kind / "config.json").write_text(json.dumps(fields | extra))
    return target / "fp8", target / "plain"


def edit_tensors(folder, edit):
    """Rewrites the file of a folder that may hold FP8."""
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: np.array(file.read(name)) for name in file.names()}
    write_tensors(folder / "model.safetensors", edit(tensors) or tensors)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """A model none of whose widths is a multiple of 128, or of 48 and 40."""
    config = tiny_config(hidden_size=144, ffn_size=200, num_layers=2, expert_ffn_size=136, kv_lora_rank=24, mtp_depth=1)
    folder = tmp_path_factory.mktemp("ragged") / "model"
    save_hf(random_params(config, dtype="float32"), config, folder)
    return folder


# Values


@pytest.mark.parametrize("form", FORMS)
def test_fp8_is_read_bit_for_bit_as_dequantised_by_hand(ragged, tmp_path, form):
    fp8, plain = quantise_folder(ragged, tmp_path, form)
    found, config = load_hf(fp8, dtype="float32")
    assert_trees_equal(found, load_hf(plain, dtype="float32")[0])
    assert config.compute_dtype == "float32"


def test_fp8_is_kept_in_the_dtype_of_the_config(ragged, tmp_path):
    """Experts' biases are stored in float32 beside it, and stay so."""
    fp8, plain = quantise_folder(ragged, tmp_path, "blocks")
    found, config = load_hf(fp8)
    assert config.compute_dtype == "bfloat16"
    wanted = named_leaves(load_hf(plain)[0])
    for name, leaf in named_leaves(found).items():
        assert leaf.dtype == ("float32" if name.endswith("expert_bias") else "bfloat16"), name
        np.testing.assert_array_equal(leaf, wanted[name].astype(leaf.dtype), err_msg=name)


@pytest.mark.parametrize("form", ["blocks", "channels [out, 1]"])
def test_fp8_layers_are_those_of_the_whole(ragged, tmp_path, form):
    fp8, _ = quantise_folder(ragged, tmp_path, form)
    params, config = load_hf(fp8)
    found, wanted = open_layers(fp8), TreeReader(params, config)
    for name in TOP:
        np.testing.assert_array_equal(found.top(name), wanted.top(name))
    for layer in range(config.num_layers + config.mtp_depth):
        assert_trees_equal(found.layer(layer), wanted.layer(layer))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["blocks", "channels [out, 1]"])
def test_fp8_of_all_families_is_read(tmp_path, family, form):
    config = tiny_config(family, num_layers=2, mtp_depth=1, compute_dtype="bfloat16")
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "model")
    fp8, plain = quantise_folder(tmp_path / "model", tmp_path, form)
    assert_trees_equal(load_hf(fp8, dtype="float32")[0], load_hf(plain, dtype="float32")[0])


def test_the_other_fp8_has_its_own_values(ragged, tmp_path):
    fp8, plain = quantise_folder(ragged, tmp_path, "blocks", fp8=ml_dtypes.float8_e5m2)
    assert_trees_equal(load_hf(fp8, dtype="float32")[0], load_hf(plain, dtype="float32")[0])


def test_a_folder_may_be_quantised_in_part(ragged, tmp_path):
    def only(name, value):
        return is_quantised(name, value) and "experts.1." in name

    fp8, plain = quantise_folder(ragged, tmp_path, "channels [out, 1]", only=only)
    assert_trees_equal(load_hf(fp8, dtype="float32")[0], load_hf(plain, dtype="float32")[0])


def test_fp8_logits_are_within_the_formats_error(tmp_path):
    """e4m3 has 3 bits behind the point: an entry is off by at most 1/16, as in a third model at random."""
    source, rng = FIXTURES / "v25_yarn_mscale", np.random.default_rng(0)
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy" / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = read_tensors(source)
    for name, value in tensors.items():
        if is_quantised(name, value):
            tensors[name] = value * rng.uniform(15 / 16, 17 / 16, value.shape).astype(np.float32)
    write_tensors(tmp_path / "noisy" / "model.safetensors", tensors)
    forward = jax.jit(model.forward, static_argnums=2, compiler_options=QUICK)

    def logits(folder):
        params, config = load_hf(folder, dtype="float32")
        return np.asarray(forward(params, np.load(source / "inputs.npz")["input_ids"], config).logits)

    def off(folder):
        return np.sqrt(np.mean(np.square(logits(folder) - logits(source)))) / np.std(logits(source))

    for form in ("blocks", "channels [out, 1]"):
        fp8, _ = quantise_folder(source, tmp_path / form[:3], form)
        assert 0.1 * off(tmp_path / "noisy") < off(fp8) < off(tmp_path / "noisy"), form


def test_scales_of_activations_are_passed_over(ragged, tmp_path):
    fp8, plain = quantise_folder(ragged, tmp_path, "whole tensors []")
    edit_tensors(fp8, lambda t: t | {"model.layers.0.attention.dense.input_scale": np.ones(1, np.float32)})
    assert_trees_equal(load_hf(fp8, dtype="float32")[0], load_hf(plain, dtype="float32")[0])


def test_a_quantised_cache_leaves_weights_as_they_are(ragged, tmp_path):
    """Its scales are passed over, whether weights are FP8 or not."""
    fp8, plain = quantise_folder(ragged, tmp_path, "blocks")
    layer = "model.layers.1.attention"
    scales = {f"{layer}.{name}": np.ones(1, "f4") for name in ("q_scale", "k_scale", "v_scale", "dense.input_scale")}
    for folder in (fp8, plain):
        edit_tensors(folder, lambda t: t | scales | {f"{layer}.dense.input_zero_point": np.zeros(1, "int8")})
    edit_config(plain, quantization_config=compressed_config() | {"config_groups": {}, "kv_cache_scheme": {}})
    assert_trees_equal(load_hf(fp8, dtype="float32")[0], load_hf(plain, dtype="float32")[0])


def test_what_is_ignored_may_have_any_format(ragged, tmp_path):
    _, plain = quantise_folder(ragged, tmp_path, "blocks")
    wanted = load_hf(plain)[0]
    edit_tensors(plain, lambda t: t | {"model.mtp.layers.0.x.weight": np.zeros((3, 3), E4M3)})
    assert_trees_equal(load_hf(plain)[0], wanted)


def test_nothing_is_left_of_the_format_in_an_export(ragged, tmp_path):
    fp8, _ = quantise_folder(ragged, tmp_path, "blocks")
    save_hf(*load_hf(fp8), tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert_trees_equal(load_hf(tmp_path / "out")[0], load_hf(fp8)[0])


def test_a_format_that_no_tensor_has_is_said(ragged, tmp_path, capfd):
    _, plain = quantise_folder(ragged, tmp_path, "blocks")
    edit_config(plain, quantization_config=fp8_block_config())
    load_hf(plain)
    assert re.search("warning: .*quantization_config, but no tensor is FP8", capfd.readouterr().err)


# What does not fit

WEIGHT = "model.layers.0.attention.dense.weight"


@pytest.fixture
def folder(ragged, tmp_path):
    return quantise_folder(ragged, tmp_path, "blocks")[0]


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def replaced(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


def renamed(name, new):
    return lambda tensors: {new if key == name else key: value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without(WEIGHT + "_scale_inv"), f"{WEIGHT} is F8_E4M3, but its scale is missing"),
        (without(WEIGHT), f"{WEIGHT}_scale_inv .* is the scale of no FP8 weight: {WEIGHT} is missing"),
        (
            replaced(WEIGHT, lambda v: v.astype(ml_dtypes.bfloat16)),
            f"{WEIGHT}_scale_inv .*no FP8 weight: {WEIGHT} is BF16",
        ),
        (replaced(WEIGHT + "_scale_inv", lambda v: v[:-1]), rf"{WEIGHT}_scale_inv is \(1, 1\).*makes it \(2, 1\)"),
        (replaced(WEIGHT + "_scale_inv", lambda v: v.reshape(-1)), rf"{WEIGHT}_scale_inv is \(2,\).*makes it \(2, 1\)"),
        (
            replaced(WEIGHT + "_scale_inv", lambda v: v.astype(np.int32)),
            f"{WEIGHT}_scale_inv is I32; scales are one of F32",
        ),
        (
            lambda t: (
                t
                | {
                    "model.norm.weight": t["model.norm.weight"].astype(E4M3),
                    "model.norm.weight_scale": np.ones(1, "f4"),
                }
            ),
            r"model.norm.weight is FP8 of shape \(144,\); FP8 weights are matrices",
        ),
        (
            lambda t: t | {WEIGHT + "_scale": t[WEIGHT + "_scale_inv"]},
            f"{WEIGHT}_scale .* is the scale of no FP8 weight",
        ),
        (replaced(WEIGHT, lambda v: v.astype(np.int8)), f"{WEIGHT} is I8 with a scale, int8"),
        (renamed(WEIGHT, WEIGHT[:-7] + ".weight_packed"), "weight_packed is of packed int4 or int8"),
        (renamed(WEIGHT, WEIGHT[:-7] + ".qweight"), "qweight is of GPTQ or AWQ"),
        (lambda t: t | {"model.layers.0.attention.dense.g_idx": np.ones(1, np.int32)}, "g_idx is of GPTQ"),
        (lambda t: t | {"model.layers.0.attention.dense.scales": np.ones(1, "f4")}, "scales is of MLX"),
        (lambda t: t | {WEIGHT + ".absmax": np.ones(1, "f4")}, "absmax is of bitsandbytes"),
    ],
)
def test_tensors_that_do_not_fit_the_format_are_named(folder, edit, message):
    edit_tensors(folder, edit)
    for load in (load_hf, load_hf_config, open_layers):
        with pytest.raises(ValueError, match=message) as error:
            load(folder)
        assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_fp8_of_another_encoding_is_refused(ragged, tmp_path, dtype):
    tensors = read_tensors(ragged)
    tensors[WEIGHT] = tensors[WEIGHT].astype(E4M3)
    (tmp_path / "config.json").write_bytes((ragged / "config.json").read_bytes())
    write_tensors(tmp_path / "model.safetensors", tensors, {WEIGHT: dtype})
    with pytest.raises(ValueError, match=rf"{WEIGHT} is {dtype}, FP8 of another encoding \(fnuz\)"):
        load_hf(tmp_path)


def test_fp8_without_a_config_is_refused(folder):
    edit_config(folder, quantization_config=None)
    with pytest.raises(ValueError, match=r"weight is F8_E4M3, but config.json has no quantization_config for FP8"):
        load_hf(folder)


def test_a_format_of_another_block_is_refused(folder):
    edit_config(folder, quantization_config=compressed_config())
    with pytest.raises(ValueError, match=r"_scale_inv is \(\d, \d\); quantization_config makes it \(\d+, 1\) or"):
        load_hf(folder)


OTHER = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}, "is gptq of 4 bits"),
    ({"quant_method": "awq", "bits": 4, "zero_point": True}, "is awq of 4 bits"),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}, "is bitsandbytes"),
    ({"load_in_8bit": True}, "is bitsandbytes"),
    ({"group_size": 64, "bits": 4}, "is MLX of 4 bits"),
    ({"quant_method": "mxfp4"}, "is mxfp4"),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "is modelopt"),
    ({"x": 1}, "is an object without quant_method: x"),
    ("fp8", "is 'fp8'; expected an object"),
    (fp8_block_config((128,)), r"weight_block_size is \[128\]; expected two numbers"),
    (fp8_block_config((128, 0)), "weight_block_size is .*; expected two numbers"),
    (fp8_block_config() | {"fmt": "e3m4"}, "fmt is 'e3m4'"),
    (compressed_config(num_bits=8, kind="int", form="int-quantized"), r"weights are int8 \(int-quantized\)"),
    (compressed_config("group", num_bits=4, kind="int", form="pack-quantized"), "weights are int4 .pack-quantized."),
    (compressed_config("group", num_bits=4, form="nvfp4-pack-quantized"), "weights are float4 .nvfp4-pack-quantized."),
    (compressed_config("group"), "strategy is 'group'; expected 'channel', 'block' or 'tensor'"),
    (compressed_config("block"), "block_structure is None; expected two numbers"),
    (compressed_config() | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is .*not computed"),
    (compressed_config() | {"transform_config": {"config_groups": {}}}, "transform_config is .*not computed here"),
    (compressed_config() | {"config_groups": []}, None),
    ({"quant_method": "a\nb" * 1000}, r"is 'a\\nba"),
    ({"quant_method": "x", "bits": 10**5000}, "is x of a number of thousands of digits bits"),
    (10**5000, "is a number of thousands of digits"),
    (compressed_config(num_bits=10**5000), "are floata number of thousands of digits"),
    (compressed_config() | {"config_groups": [1]}, r"config_groups is \[1\]; expected an object of objects"),
]


@pytest.mark.parametrize(("found", "message"), OTHER, ids=range(len(OTHER)))  # pytest prints no huge number
def test_formats_that_are_not_read_are_refused_by_name(found, message):
    if message is None:
        assert weight_format({"quantization_config": found}) is None
        return
    with pytest.raises(ValueError, match=f"config.json: quantization_config.* ?{message}") as error:
        weight_format({"quantization_config": found})
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_blocks_may_be_written_as_older_compressed_tensors_do():
    assert weight_format({"quantization_config": compressed_config("block", structure="128x96")}) == (
        WeightFormat(128, 96)
    )


def test_mlx_is_refused_by_its_own_key():
    with pytest.raises(ValueError, match=r"config\.json: quantization is MLX of 4 bits"):
        weight_format({"quantization": {"group_size": 64, "bits": 4}})
