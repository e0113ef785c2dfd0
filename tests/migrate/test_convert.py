"""Whole models converted layer by layer."""

import dataclasses
import gc
import threading
import time
import weakref

import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.checkpoint import load_hf
from ling_jax.checkpoint.layerwise import layerwise_forward
from ling_jax.checkpoint.parts import TreeReader
from ling_jax.distributed.peers import ALONE
from ling_jax.migrate.convert import Conversion, convert_model, converted_layers, form_config
from ling_jax.model import mla
from ling_jax.spec import named_leaves
from tests.helpers.damage import files_below
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.small_migration import WHOLE, source_config, target_config
from tests.helpers.thread_peers import run_together
from tests.helpers.tiny import random_params


def rows(seed, length=24, padding=5):
    """A batch of one row: two documents and padding."""
    tokens = np.random.default_rng(seed).integers(0, 263, (1, length)).astype(np.int32)
    segments = np.r_[[1] * 10, [2] * (length - 10 - padding), [0] * padding][None].astype(np.int32)
    positions = np.r_[np.arange(10), np.arange(length - 10)][None].astype(np.int32)
    return {"tokens": tokens, "labels": tokens, "segment_ids": segments, "positions": positions}


CALIBRATION, HELD_OUT = [rows(0), rows(1)], [rows(2)]
WIDE = dict(compute_dtype="float64", q_lora_rank=16)  # as wide as the hidden size


def converted(source, target, folder, params=None, conversion=None):
    """(parameters, records)."""
    params = random_params(source, dtype=source.compute_dtype, std=0.2) if params is None else params
    records = convert_model(
        TreeReader(params, source), target, CALIBRATION, HELD_OUT, conversion or Conversion(), folder
    )
    return load_hf(folder)[0], records


def forms(source=None, target=None, size=WHOLE):
    source, target = source_config(**size | (source or {})), target_config(**size | (target or {}))
    return {name: form_config(source, target, name) for name in ("gqa", "linear", "fused", "mla")}


@pytest.mark.parametrize("size", [{}, pytest.param(WHOLE, marks=pytest.mark.slow)], ids=["dense", "experts and MTP"])
def test_a_model_of_one_kv_head_is_the_same_model_as_mla(tmp_path, x64, monkeypatch, size):
    """Every layer and the logits, MTP included; the latent norms aside, which no weights make the identity."""
    monkeypatch.setattr(mla, "rms_norm", lambda x, weight, eps: x)
    form = forms(dict(num_kv_heads=1, compute_dtype="float64"), WIDE | dict(kv_lora_rank=12), size=size)
    source, target = form["fused"], form["mla"]
    before = random_params(source, dtype="float64", std=0.2)
    after, records = converted(source, target, tmp_path, before)
    assert [record["layer"] for record in records] == converted_layers(source, target)
    assert all(record["output_error"] < 1e-6 and record["rope"] == 1 for record in records)
    forward = quick_jit(model.forward, static_argnums=2)
    wanted, found = (
        forward(params, HELD_OUT[0]["tokens"], config, segment_ids=HELD_OUT[0]["segment_ids"])
        for params, config in ((before, source), (after, target))
    )
    live = HELD_OUT[0]["segment_ids"] > 0
    np.testing.assert_allclose(found.logits[live], wanted.logits[live], rtol=0, atol=1e-6)
    for depth, logits in enumerate(wanted.mtp_logits):
        np.testing.assert_allclose(found.mtp_logits[depth][live], logits[live], rtol=0, atol=1e-6)


@pytest.mark.parametrize("start,end", [("gqa", "linear"), ("linear", "fused"), ("gqa", "mla")])
def test_a_conversion_changes_only_the_layers_of_its_form(tmp_path, start, end):
    form = forms(size={})
    source, target = form[start], form[end]
    before = random_params(source, dtype="float32", std=0.2)
    after, records = converted(source, target, tmp_path, before)
    declared = {name: leaf.shape for name, leaf in named_leaves(model.model_spec(target)).items()}
    assert {name: leaf.shape for name, leaf in named_leaves(after).items()} == declared
    changed = {record["layer"] for record in records}
    old, new = TreeReader(before, source), TreeReader(after, target)
    for number in range(source.num_layers):
        names = named_leaves(old.layer(number)), named_leaves(new.layer(number))
        for name in names[0].keys() & names[1].keys():
            if "/mixer/" not in f"/{name}" or number not in changed or name.endswith("out"):
                np.testing.assert_array_equal(names[0][name], names[1][name], err_msg=f"layer {number}: {name}")


def test_a_mixers_inputs_are_those_of_the_forward_pass(x64):
    source = forms(dict(compute_dtype="float64"), WIDE, size={})["gqa"]
    params = random_params(source, dtype="float64", std=0.2)
    layers = list(layerwise_forward(TreeReader(params, source), HELD_OUT))
    assert [layer.number for layer in layers] == [0, 1]
    changed = jax.tree.map(np.copy, params)
    norm = changed["segments"]["0"]["0_gqa_dense"]["mixer_norm"]
    norm[1] *= 2  # layer 1: its normed inputs double, and nothing before it changes
    doubled = list(layerwise_forward(TreeReader(changed, source), HELD_OUT))
    np.testing.assert_allclose(doubled[1].inputs[0], 2 * layers[1].inputs[0], rtol=1e-12)
    np.testing.assert_array_equal(doubled[0].inputs[0], layers[0].inputs[0])
    first = params["embed"][HELD_OUT[0]["tokens"]]
    rms = np.sqrt(np.mean(first**2, axis=-1, keepdims=True) + source.norm_eps)
    (run, *_) = params["segments"]["0"].values()
    np.testing.assert_allclose(layers[0].inputs[0], first / rms * run["mixer_norm"][0, 0], rtol=1e-12)


def test_a_conversion_keeps_one_layer_in_memory(tmp_path):
    form, alive = forms(size={}), []

    class Watched(TreeReader):
        def layer(self, number):
            deadline = time.monotonic() + 5  # the device lets go of an array a moment after it was used
            while held := any(ref() is not None for ref in alive):
                gc.collect()
                if time.monotonic() > deadline:
                    break
            assert not held, "a layer is held while the next is read"
            layer = jax.tree.map(np.array, super().layer(number))
            alive[:] = [weakref.ref(leaf) for leaf in jax.tree.leaves(layer)]
            return layer

    reader = Watched(random_params(form["gqa"], dtype="float32", std=0.2), form["gqa"])
    records = convert_model(reader, form["mla"], CALIBRATION, HELD_OUT, Conversion(), tmp_path)
    assert len(records) == 2


@pytest.mark.slow
def test_fusing_is_better_than_dropping_and_complex_keeps_more_than_real(tmp_path):
    form = forms(size={})
    errors = {}
    for name, end, conversion in (
        ("fuse", "fused", Conversion()),
        ("drop", "fused", Conversion(qk_norm="drop")),
        ("complex", "mla", Conversion()),
        ("real", "mla", Conversion(pca="real")),
    ):
        folder = tmp_path / name
        folder.mkdir()
        _, records = converted(form["linear"], form[end], folder, conversion=conversion)
        errors[name] = records
    mean = {name: np.mean([r["output_error"] for r in records]) for name, records in errors.items()}
    assert mean["fuse"] < mean["drop"]
    assert all(c["rope"] >= r["rope"] for c, r in zip(errors["complex"], errors["real"], strict=True))


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (2, dict(mtp_depth=1, compute_dtype="bfloat16")),
        (5, dict(mtp_depth=1)),  # more than layers: two have none
        pytest.param(3, WHOLE, marks=pytest.mark.slow),
    ],
    ids=["2, bfloat16", "5", "3, experts"],
)
def test_processes_that_divide_the_layers_write_the_bytes_of_one(tmp_path, count, size):
    form = forms(size=size)
    params = random_params(form["gqa"], dtype="float32", std=0.2)

    def convert(folder, peers):
        reader = TreeReader(params, form["gqa"])
        return convert_model(reader, form["mla"], CALIBRATION, HELD_OUT, Conversion(), folder, peers)

    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    wanted = convert(tmp_path / "alone", ALONE)
    assert [record["layer"] for record in wanted] == list(range(form["gqa"].num_layers + 1))  # MTP too
    found = run_together(count, lambda peers: convert(tmp_path / "together", peers))
    assert found == [wanted] * count
    assert files_below(tmp_path / "together") == files_below(tmp_path / "alone")


def test_a_process_reads_only_its_own_layers(tmp_path):
    form, read = forms(size={}), {}

    class Watched(TreeReader):
        def layer(self, number):
            read.setdefault(number, []).append(threading.current_thread())
            return super().layer(number)

    reader = Watched(random_params(form["gqa"], dtype="float32", std=0.2), form["gqa"])
    samples = (CALIBRATION, HELD_OUT, Conversion())
    run_together(2, lambda peers: convert_model(reader, form["linear"], *samples, tmp_path, peers))
    assert {number: len(threads) for number, threads in read.items()} == {0: 1, 1: 1}
    assert read[0] != read[1]


def test_a_migration_changes_only_mixers():
    with pytest.raises(ValueError, match=r"target\.num_experts is 16, the source's 8; a migration changes only the"):
        form_config(source_config(**WHOLE), target_config(**WHOLE, num_experts=16), "linear")
    linear = dataclasses.replace(forms()["linear"])
    with pytest.raises(ValueError, match=r"target\.full_attention is 'gqa'; a migration ends with 'mla'"):
        form_config(source_config(**WHOLE), linear, "mla")


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(kv_heads="copy"), "conversion.kv_heads is 'copy'"),
        (dict(pca="reel"), "conversion.pca is 'reel', did you mean 'real'"),
        (dict(held_out_tokens=0), "conversion.held_out_tokens is 0; it must be positive"),
    ],
)
def test_unknown_conversion_options_are_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        Conversion(**fields)
