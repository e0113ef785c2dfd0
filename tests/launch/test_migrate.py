import dataclasses
import json
import subprocess
import sys

import pytest

from configs.migrate import tiny
from ling_jax.checkpoint import load_hf
from ling_jax.checkpoint.folder import load_model
from ling_jax.config import model_config
from ling_jax.migrate.run import read_report
from tests.helpers.faults import ROOT, run_with_kills
from tests.helpers.refusals import run_each
from tests.helpers.small_migration import write_source
from tests.helpers.small_run import write_corpus
from tests.helpers.small_stage import write_stage
from tests.helpers.tiny import assert_trees_equal

CONFIG = "--config=tests/helpers/small_migration.py"


def test_the_plan_of_the_real_1t_and_what_is_refused(tmp_path):
    one_t, nowhere, homeless = run_each(
        "launch.migrate",
        [
            ["--config=configs/migrate/1t.py", "--dry_run", "--num_hosts=256"],
            [CONFIG, f"--workdir={tmp_path}", "--config.source=nowhere"],
            [CONFIG, "--config.source=nowhere"],
        ],
    )
    assert one_t.returncode == 0, one_t.stderr
    for text in (
        "70 layers gqa -> lightning", "11 layers gqa -> mla", "100.06B tokens in 1491 steps",
        "20% of sequences that long", "rope theta 6e+06", "12.30 TB of state", "33 checkpoints of 12.30 TB",
        "in all: 9.60T tokens", "each of 256 hosts at most: conversion reads 32.00 GB, writes 32.00 GB",
        "merge reads 512.71 GB, writes 16.02 GB",
    ):  # fmt: skip
        assert text in one_t.stdout
    assert (nowhere.returncode, homeless.returncode) == (2, 2)
    assert "nowhere holds neither checkpoints/" in nowhere.stderr and "--workdir is missing" in homeless.stderr


@pytest.mark.slow
def test_a_plan_that_is_killed_ten_times_ends_in_the_same_bits(tmp_path):
    write_source(tmp_path / "source")
    write_corpus(tmp_path / "corpus", 40)
    sources = f"({{'kind': 'text', 'path': '{tmp_path / 'corpus'}'}},)"
    flags = [CONFIG, f"--config.source={tmp_path / 'source'}", f"--config.data.sources={sources}"]
    commands = {name: [sys.executable, "-m", "launch.migrate", *flags, f"--workdir={tmp_path / name}"] for name in "ab"}
    run_with_kills(commands["a"], kills=0, longest=0, seed=0, log=tmp_path / "a.log")
    hits = run_with_kills(commands["b"], kills=10, longest=15, seed=0, log=tmp_path / "b.log")
    assert len(hits) == 10
    stages = sorted(path.name for path in (tmp_path / "a").glob("[0-9]*_*"))
    assert len(stages) == 5
    for stage in stages:
        reports = [read_report(tmp_path / name / stage / "report.json") for name in "ab"]
        for report in reports:
            del report["seconds"]
        assert reports[0] == reports[1]
        models = [load_model(tmp_path / name / stage).params for name in "ab"]
        assert_trees_equal(*models)


def program(name, *flags):
    done = subprocess.run([sys.executable, "-m", f"launch.{name}", *flags], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_tiny_preset_becomes_a_hugging_face_folder_that_generates(tmp_path):
    """The whole way: a 2.0 model, its migration with a step or a few of each stage, export, and the same text."""
    write_stage(tmp_path / "base", model_config("tiny-2.0"))
    write_corpus(tmp_path / "corpus", 40)
    step = 8 * 256
    stages = [dict(stage) for stage in tiny.get_config().stages]
    for stage in stages:
        stage["tokens"] = 4 * step if stage["name"] == "mid_1" else step if stage["trains"] else 0
    given = {
        "source": tmp_path / "base",
        "stages": tuple(stages),
        "data.sources": ({"kind": "text", "path": str(tmp_path / "corpus")},),
        "data.held_out_fraction": 0.3,
        "conversion.calibration_tokens": 1024,
        "conversion.held_out_tokens": 512,
        "train.save_every": 1,
    }
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    told = program("migrate", "--config=configs/migrate/tiny.py", f"--workdir={tmp_path / 'plan'}", *flags)
    assert "nats/token in rows of 256 -> " in told and "in rows of 512" in told
    migrated = load_model(tmp_path / "plan/5_merge")
    assert migrated.config == model_config("tiny-2.6", rope_theta=60000.0)

    program("port", f"--source={tmp_path / 'plan/5_merge'}", f"--target={tmp_path / 'hf'}")
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == ["BailingMoeV2_5ForCausalLM"]
    params, config = load_hf(tmp_path / "hf")
    how = {name: getattr(migrated.config, name) for name in ("remat", "lightning_chunk", "loss_chunk")}
    assert dataclasses.replace(config, **how) == migrated.config  # how a model is run is no matter of its files
    assert_trees_equal(params, migrated.params)
    asked = ("--prompt=one other", "--max_new_tokens=12", "--temperature=0")
    texts = [program("generate", f"--model={tmp_path / name}", *asked) for name in ("hf", "plan/5_merge")]
    assert texts[0] == texts[1] and texts[0].strip()
