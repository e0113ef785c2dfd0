"""The panel and the page of a run, from its files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.watch_page import run_page
from launch.watch_panel import rows, sparkline
from ling_jax.rl.errors import ErrorLog
from ling_jax.rl.loop import train
from ling_jax.rl.watched import read_run, shares, wall_seconds
from tests.helpers.rl_run import prepared, small_config, steps_compiled_once, write_start

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    with steps_compiled_once():
        train(prepared(small_config(write_start(folder / "start")), folder / "kpop"))
    ErrorLog(folder / "kpop").note("engine 0", "no memory", version=3)
    ErrorLog(folder / "kpop").note("engine 0", "no memory <again>", version=4)
    return folder / "kpop"


def program(*arguments):
    command = [sys.executable, "-m", "launch.watch", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_panel_says_what_the_last_step_did_and_what_failed(workdir):
    run = read_run(workdir)
    last, told = run.metrics[-1], {name: value for name, _, value in rows(run)}
    assert told["reward"] == f"{last['reward']:.3f}" and told["masked"] == f"{last['masked_fraction']:.2%}"
    assert told["oldest token"] == f"{last['staleness/max']} versions"
    assert told["rollouts out"] == f"{last['outstanding']} of at most {last['outstanding_bound']}"
    assert told["engine 0 failed"] == "2 times, the last time: no memory <again>"
    assert "masked by probability" in told and "drawing" in told["time of a step"]


def test_shares_are_of_the_time_between_two_steps(workdir):
    run = read_run(workdir)
    for line, seconds in zip(run.metrics, wall_seconds(run.metrics), strict=True):
        found = shares(line, seconds)  # a version may have nothing to draw
        assert 0 <= found["drawing"] < 1 and 0 < found["learning"] < 1


def test_a_line_that_is_being_written_is_left_for_later(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    assert rows(read_run(tmp_path)) == [("waits", "", "for the first step")]
    whole = (workdir / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole[:-20])
    assert len(read_run(tmp_path).metrics) == len(whole.splitlines()) - 1


def test_a_curve_is_between_its_smallest_and_its_largest_value():
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█" and sparkline([3.0, 3.0]) == "▁▁" and len(sparkline(range(99))) == 40


def test_the_page_is_one_file_that_loads_nothing(workdir):
    page = run_page(read_run(workdir))
    assert "<script" not in page and "src=" not in page and 'href="http' not in page
    assert "Staleness, weight versions" in page and "Slots: which rollouts held them" in page
    assert "no memory &lt;again&gt;" in page


def test_the_program_prints_the_panel_and_writes_the_page(workdir, tmp_path):
    ended = program(f"--workdir={workdir}", "--once")
    assert ended.returncode == 0 and "kpop: step 6 of 6" in ended.stdout and "no memory" in ended.stdout
    ended = program(f"--workdir={workdir}", f"--out={tmp_path / 'page.html'}")
    assert ended.returncode == 0 and (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_a_folder_without_a_run_is_named(tmp_path):
    ended = program(f"--workdir={tmp_path}", "--once")
    assert ended.returncode and f"{tmp_path} holds no run of reinforcement learning" in ended.stderr
    (tmp_path / "config.json").write_text(json.dumps({"train": {}}))
    assert program(f"--workdir={tmp_path}", "--once").returncode
