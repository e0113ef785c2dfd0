"""What a dry run says of each host."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from flax import traverse_util

from ling_jax import spec as specs
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.parts import TOP, layer_leaves
from ling_jax.migrate.convert import Conversion, form_config
from ling_jax.migrate.dry_run import as_text, dry_run
from ling_jax.migrate.host_shares import conversion_share, merge_share, training_share
from ling_jax.model import model_spec
from ling_jax.spec import named_leaves
from ling_jax.train.config import MeshConfig
from tests.helpers.faults import ROOT
from tests.helpers.small_migration import WHOLE, small_config, source_config, target_config

SOURCE, TARGET = source_config(**WHOLE), target_config(**WHOLE)
CONFIG = small_config("source", "corpus", target=TARGET)
FORMS = {name: form_config(SOURCE, TARGET, name) for name in ("gqa", "linear", "mla")}


def test_one_host_reads_and_writes_the_whole_model():
    share = conversion_share(CONFIG, FORMS["gqa"], FORMS["mla"], 2, 1)
    assert share.read == 2 * specs.count(model_spec(FORMS["gqa"]))
    assert share.written == 2 * specs.count(model_spec(FORMS["mla"]))


def test_more_hosts_read_less_until_each_has_one_layer():
    config = dataclasses.replace(CONFIG, conversion=Conversion(calibration_tokens=1, held_out_tokens=1))
    reads = [conversion_share(config, FORMS["gqa"], FORMS["linear"], 4, hosts).read for hosts in (1, 2, 5, 6, 100)]
    assert reads[0] > reads[1] > reads[2] == reads[3] == reads[4]  # four layers and one MTP module


def test_the_parts_of_checkpoints_add_up_to_all_of_them():
    whole = specs.count(model_spec(TARGET))
    share = training_share(TARGET, MeshConfig(data=1, fsdp=4), 4, 12 * whole, 4)
    assert 4 * share.written >= 12 * whole > 4 * (share.written - 1)
    assert 4 * whole < 4 * share.read < 2 * 4 * whole  # norms, and parts of MLA, are on every device
    merged = merge_share(TARGET, 3, 4)
    assert merged.read == 3 * merged.written and 4 * merged.written >= 4 * whole


def test_the_dry_run_names_the_share_of_a_host():
    text = as_text(dry_run(CONFIG, SOURCE, hosts=2))
    assert text.count("each of 2 hosts at most: conversion reads ") == 3
    assert text.count("each of 2 hosts at most: training reads ") == 4
    assert text.count("each of 2 hosts at most: merge reads ") == 1
    assert "one host at most: conversion reads " in as_text(dry_run(CONFIG, SOURCE))


# A model of 1.7 GB whose layers have 0.2 GB each.
LARGE = dict(num_layers=8, hidden_size=1024, num_experts=32, expert_ffn_size=512, shared_ffn_size=512, mtp_depth=0)
LARGE |= dict(first_dense_layers=0)
MEASURE = """
import resource, sys
from pathlib import Path
from ling_jax.checkpoint.hf_reader import HfReader
from ling_jax.migrate.convert import convert_model
from tests.migrate.test_host_shares import CONVERSION, large_forms
from tests.migrate.test_convert import rows
folder, (before, after) = Path(sys.argv[1]), large_forms(sys.argv[2])
samples = [rows(seed, length=256) for seed in range(3)]
convert_model(HfReader(folder / "source"), after, samples[:2], samples[2:], CONVERSION, folder / "target")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
CONVERSION = Conversion(kv_heads="repeat", calibration_tokens=512, held_out_tokens=256)


def large_forms(compute: str):
    sizes = LARGE | dict(compute_dtype=compute)
    source, target = source_config(**sizes), target_config(**sizes)
    return form_config(source, target, "gqa"), form_config(source, target, "mla")


def write_random(folder, config) -> None:
    """A Hugging Face folder of a random model, written layer by layer."""
    folder.mkdir()
    rng, shapes = (
        np.random.default_rng(0),
        {name: leaf.shape for name, leaf in named_leaves(model_spec(config)).items()},
    )

    def drawn(leaf, index=()):
        return rng.standard_normal(shapes[leaf][len(index) :], np.float32) / 32

    writer = HfWriter(folder, config, {name: np.dtype("float32") for name in shapes})
    for name in TOP:
        writer.top(name, drawn(name))
    for number, layer in enumerate(layer_leaves(config)):
        leaves = {name: drawn(*part) for name, part in layer.items()}
        writer.layer(number, traverse_util.unflatten_dict(leaves, sep="/"))
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_conversion_takes_no_more_memory_than_the_dry_run_says(tmp_path, compute):
    before, after = large_forms(compute)
    write_random(tmp_path / "source", before)
    (tmp_path / "target").mkdir()
    command = [sys.executable, "-c", MEASURE, str(tmp_path), compute]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    share = conversion_share(dataclasses.replace(CONFIG, conversion=CONVERSION), before, after, 4, 1)
    peak, whole = int(done.stdout.split()[-1]), 4 * specs.count(model_spec(before))
    assert peak < share.memory < whole, f"{peak / 1e9:.2f} GB, said {share.memory / 1e9:.2f}, model {whole / 1e9:.2f}"
