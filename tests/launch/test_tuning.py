"""Fine-tuning and distillation as programs: killed anywhere they end in the same bits."""

import sys

import pytest

from tests.helpers.faults import ROOT, assert_same_end, run_with_kills, step_seconds
from tests.helpers.small_stage import write_stage

SUMS = "{'environment': 'running_sums', 'difficulties': (1,), 'count': 6}"
SMALL = [
    "--config.data.sequence_length=128",
    "--config.train.batch_size=4",
    "--config.train.save_every=30",
    "--config.optimizer.peak_lr=1e-2",
    "--config.optimizer.weight_decay=0.0",
]


def program(name, config, workdir, *more):
    where = [f"--config={ROOT / config}", f"--workdir={workdir}"]
    return [sys.executable, "-m", f"launch.{name}", *where, *SMALL, *more]


def alone_and_killed(name, config, folder, *more):
    run_with_kills(program(name, config, folder / "alone", *more), kills=0, longest=0, seed=0, log=folder / "log")
    killed = program(name, config, folder / "killed", *more)
    longest = step_seconds(folder / "alone") / 3
    hits = run_with_kills(killed, kills=6, longest=longest, seed=0, log=folder / "log", begin="step=")
    assert len(hits) >= 3, hits
    assert_same_end(folder / "alone", folder / "killed")


@pytest.mark.slow
def test_kills_change_nothing(tmp_path, monkeypatch):
    """Fine-tuning, and then distillation from what it left."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    write_stage(tmp_path / "start")
    (tmp_path / "sft").mkdir()
    (tmp_path / "distill").mkdir()
    tuning = (f"--config.start_from={tmp_path / 'start'}", f"--config.sources=({SUMS},)", "--config.train.steps=160")
    alone_and_killed("sft", "configs/align/tiny_sft.py", tmp_path / "sft", *tuning)
    teacher = tmp_path / "sft" / "alone"
    distilling = (
        f"--config.start_from={teacher}",
        f"--config.teachers=({{'model': '{teacher}', 'tasks': ({SUMS},)}},)",
        "--config.sampling.context=128",
        "--config.train.steps=60",
    )
    alone_and_killed("distill", "configs/align/tiny_shortest_correct.py", tmp_path / "distill", *distilling)
    answers = [next((tmp_path / "distill" / name / "data").glob("*.jsonl")) for name in ("alone", "killed")]
    assert answers[0].read_bytes() == answers[1].read_bytes()
