"""Reinforcement learning as a program: what it refuses, and that killed anywhere it ends in the same bits."""

import sys

import pytest

from tests.helpers.faults import ROOT, assert_same_end, run_with_kills, step_seconds
from tests.helpers.refusals import run_each
from tests.helpers.rl_run import write_start

SMALL = [
    "--config.rollout.context=184",
    "--config.rollout.slots=16",
    "--config.rollout.group_size=4",
    "--config.rollout.prompts_per_step=1",
    "--config.rollout.max_tokens=48",
    "--config.rollout.token_budget=60",
    "--config.optimizer.peak_lr=1e-2",
    "--config.train.eval_tasks=4",
    "--config.train.microbatches=1",
    "--config.train.save_every=7",
]


def test_what_cannot_run_ends_with_exit_code_2(tmp_path):
    refused = {
        "runs/nowhere holds neither checkpoints/": "--config.start_from=runs/nowhere",
        "group_size is 1; it must be at least 2": "--config.rollout.group_size=1",
        "reward is 'evocot', did you mean 'evo_cot'": "--config.reward=evocot",
        "reward is 'no_module:score': there is no module no_module": "--config.reward=no_module:score",
        "tasks[0]: environment is 'json:dumpz': json has no 'dumpz'": "--config.tasks[0].environment=json:dumpz",
        "and environment 'running_sums', which reads no file": "--config.tasks[0].path=own.jsonl",
        "config.rollout has no field 'slot', did you mean 'slots'": "--config.rollout.slot=1",
        "so none could be trained on": "--config.rollout.max_staleness=0",
        "reward is 'adaptive', which pays by thinking effort": "--config.reward=adaptive",
        "has no checkpoint: there is no run to replay": "--replay",
    }
    where = [f"--config={ROOT / 'configs/rl/tiny_kpop.py'}", f"--workdir={tmp_path / 'run'}"]
    results = run_each("launch.rl", [[*where, flag] for flag in refused.values()])
    for message, result in zip(refused, results, strict=True):
        assert result.returncode == 2 and message in result.stderr, result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_kills_change_nothing(tmp_path, monkeypatch):
    """At any moment of generation, update, evaluation and save; then the run is replayed from its log."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    start = write_start(tmp_path / "start")

    def program(workdir, *more):
        where = [f"--config={ROOT / 'configs/rl/tiny_kpop.py'}", f"--workdir={workdir}", f"--config.start_from={start}"]
        return [sys.executable, "-m", "launch.rl", *where, *SMALL, "--config.train.steps=200", *more]

    alone, killed = tmp_path / "alone", tmp_path / "killed"
    run_with_kills(program(alone), kills=0, longest=0, seed=0, log=tmp_path / "log")
    longest = step_seconds(alone) / 5  # so that ten kills, half as long on average, fall all over the run
    hits = run_with_kills(program(killed), kills=10, longest=longest, seed=0, log=tmp_path / "log", begin="step=")
    assert len(hits) >= 5, hits
    assert_same_end(alone, killed)
    for name in ("events.jsonl", "samples.jsonl", "evaluation/000200/samples.jsonl"):
        assert (alone / name).read_bytes() == (killed / name).read_bytes(), name
    run_with_kills(program(killed, "--replay"), kills=0, longest=0, seed=0, log=tmp_path / "log")
    assert "200 steps are the same, bit for bit" in (tmp_path / "log").read_text()
