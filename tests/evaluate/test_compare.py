"""Two models on the same tokens: the first layer that departs is named, and ports depart nowhere."""

import dataclasses
import functools
import gc
import time
import weakref

import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.checkpoint import load_hf, orbax, transfer
from ling_jax.checkpoint.hf_reader import HfReader
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.orbax_parts import OrbaxReader
from ling_jax.checkpoint.parts import TreeReader, layer_leaves
from ling_jax.evaluate import layer_errors
from ling_jax.evaluate.layer_errors import PartError, check_comparable, compare_layers, config_differences
from tests.helpers.tiny import FAMILIES, random_params, tiny_config

CONFIG = tiny_config(mtp_depth=2, compute_dtype="float32")
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 24))


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, dtype="float32")


def changed(params, leaf, index, factor=1.001):
    """The parameters with one number of a leaf multiplied."""
    params = jax.tree.map(lambda x: x, params)
    *parents, name = leaf.split("/")
    node = functools.reduce(dict.__getitem__, parents, params)
    node[name] = node[name].copy()
    node[name][index] *= factor
    return params


def compared(one, other, config=CONFIG, other_config=None):
    """(errors of parts by name, distances of logits by name)."""
    found = list(compare_layers(TreeReader(one, config), TreeReader(other, other_config or config), TOKENS))
    parts = {error.name: error for error in found if isinstance(error, PartError)}
    return parts, {error.name: error for error in found if not isinstance(error, PartError)}


def departing(parts):
    return [name for name, error in parts.items() if error.departs]


def test_identical_models_differ_nowhere(params):
    parts, logits = compared(params, params)
    assert all(error[2:] == (0, 0, 0) for error in parts.values())
    assert all(error[1:] == (0, 0, 1) for error in logits.values())
    layers = [f"layer {number}" for number in range(4)]
    assert list(parts) == [
        "embedding", *layers, "final norm", "logits", "MTP 1", "MTP 1 logits", "MTP 2", "MTP 2 logits",
    ]  # fmt: skip
    assert list(logits) == ["next token", "MTP 1 next token", "MTP 2 next token"]


CHANGES = {
    "embedding": ("embed", (TOKENS[0, 3], 2)),
    "layer 0": ("segments/0/0_lightning_dense/mixer/gate", (0, 0, 3, 1, 2)),
    "layer 3": ("segments/1/1_mla_moe/ffn/router", (0, 0, 1, 2)),
    "final norm": ("final_norm", 3),
    "logits": ("head", (2, 7)),
    "MTP 2": ("mtp/layer/ffn/shared/up", (1, 2, 3)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_part_of_a_single_changed_weight_is_named(params, name):
    parts, logits = compared(params, changed(params, *CHANGES[name]))
    assert departing(parts) == ([name] if name != "logits" else ["logits", "MTP 1 logits", "MTP 2 logits"])
    before = list(parts)[: list(parts).index(name)]
    assert all(parts[earlier].error == 0 for earlier in before) and parts[name].error > 0
    assert max(error.mean_kl for error in logits.values()) > 0


def test_the_kl_of_logits_is_that_of_the_forward_pass(params, monkeypatch):
    monkeypatch.setattr(layer_errors, "LOGIT_BYTES", 4 * 40 * 7)  # seven tokens at a time
    other = changed(params, "head", slice(None), 1.1)
    _, logits = compared(params, other)
    forward = jax.jit(lambda params: model.forward(params, TOKENS, CONFIG))
    outs = [forward(p) for p in (params, other)]
    for i, name in enumerate(logits):
        logp, logq = (np.asarray(jax.nn.log_softmax((out.logits, *out.mtp_logits)[i]), np.float64) for out in outs)
        kl = (np.exp(logp) * (logp - logq)).sum(axis=-1)
        assert logits[name].mean_kl == pytest.approx(kl.mean(), rel=1e-2)
        assert logits[name].max_kl == pytest.approx(kl.max(), rel=1e-2)
        assert logits[name].same_top == np.mean(logp.argmax(-1) == logq.argmax(-1))


@pytest.mark.parametrize("narrow_first", [True, False])
def test_a_model_in_bfloat16_is_off_by_its_rounding_and_departs_nowhere(params, narrow_first):
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    models = (narrow, params) if narrow_first else (params, narrow)
    parts, logits = compared(*models)
    assert departing(parts) == []
    assert all(error.own > 1e-4 and error.rounding == pytest.approx(error.own, rel=0.1) for error in parts.values())
    assert 1e-4 < logits["next token"].mean_kl < 0.1
    other = changed(narrow, "segments/1/1_mla_moe/mixer/out", slice(None), 1.05)  # of layer 3
    assert departing(compared(params, other)[0]) == ["layer 3"]


def test_an_export_in_float8_departs_nowhere_and_has_a_kl(params, tmp_path):
    reader = TreeReader(params, CONFIG)
    transfer.transfer(reader, HfWriter(tmp_path, CONFIG, reader.dtypes, fp8=True))
    found = list(compare_layers(reader, HfReader(tmp_path), TOKENS))
    parts = {error.name: error for error in found if isinstance(error, PartError)}
    assert departing(parts) == [] and parts["layer 1"].own == parts["layer 1"].rounding > 0.01
    assert parts["embedding"].error == 0  # it stays wide
    assert 1e-4 < found[7].mean_kl < 0.5 and found[7].name == "next token"


@pytest.mark.slow
def test_official_folders_and_their_ports_are_equal_to_the_bit(golden, tmp_path):
    names = sorted(path.parent.name for path in golden.glob("*/config.json"))
    assert len(names) >= 5
    for name in names:
        params, config = load_hf(golden / name)
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 32))
        orbax.save_params(tmp_path / name, params, dataclasses.replace(config, lightning_chunk=8))
        for found in compare_layers(HfReader(golden / name), OrbaxReader(tmp_path / name), tokens):
            assert found[2:] == (0, 0, 0) if isinstance(found, PartError) else found[1:] == (0, 0, 1), (name, found)


def test_other_functions_of_the_same_weights_depart_where_they_are_used(params):
    other = dataclasses.replace(CONFIG, rope_theta=2e4, init_std=1.0, lightning_chunk=16)
    assert config_differences(CONFIG, other) == ["rope_theta is 10000.0 and 20000.0"]
    assert departing(compared(params, params, other_config=other)[0])[0] == "layer 0"


@pytest.mark.slow
def test_models_of_other_kinds_of_layers_are_compared(params):
    configs = [tiny_config(family, compute_dtype="float32") for family in FAMILIES]
    models = [random_params(config, dtype="float32") for config in configs]
    parts, _ = compared(models[0], models[2], configs[0], configs[2])  # MLA, GQA
    assert parts["layer 1"].kind == "mla, moe | gqa, moe" and parts["layer 1"].departs


def test_models_of_other_sizes_are_refused():
    other = tiny_config(mtp_depth=1, vocab_size=41, num_layers=6, num_experts=16)
    with pytest.raises(ValueError, match=r"layer by layer: vocab_size is 40 and 41; num_layers is 4 and 6$"):
        check_comparable(CONFIG, other)


def test_one_block_of_weights_is_held_at_a_time(params):
    """But for the two heads, whose logits are compared."""
    blocks = {place: str(number) for number, places in enumerate(layer_leaves(CONFIG)) for place in places.values()}
    alive = []

    def holds():
        return {of for ref, of in alive if ref() is not None and of[1] != "head"}

    class Watched(TreeReader):
        def read(self, leaf, index=()):
            block = (id(self), blocks.get((leaf, index), leaf))
            end = time.monotonic() + 10  # JAX lets go of arrays from another thread
            while (held := holds() - {block}) and time.monotonic() < end:
                gc.collect(0)
            assert not held, f"{held} while {block} is read"
            values = np.array(super().read(leaf, index))
            alive.append((weakref.ref(values), block))
            return values

    assert len(list(compare_layers(Watched(params, CONFIG), Watched(params, CONFIG), TOKENS))) == 14
