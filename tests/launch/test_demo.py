"""The thread of stages: their order, what is skipped, how they end, and all of it once."""

import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from ml_collections.config_flags import config_path

from launch import demo, sandboxed
from launch.demo_rules import COMPARED
from ling_jax.align.sft import SftConfig
from ling_jax.align.specialists import DistillConfig
from ling_jax.migrate.config import MigrateConfig
from ling_jax.rl.config import RLConfig
from ling_jax.sandbox import SandboxError
from ling_jax.train.config import PretrainConfig, from_dict
from tests.helpers.browser import chromium_or_skip, figures_of, open_file, too_wide
from tests.helpers.faults import ROOT, assert_same_end, run_with_kills, runs_below

NAMES = [stage.name for stage in demo.STAGES]
QUICK_NAMES = [stage.name for stage in demo.stages_of("quick")]
CONFIGS = {
    "launch.pretrain": PretrainConfig, "launch.migrate": MigrateConfig, "launch.sft": SftConfig,
    "launch.distill": DistillConfig,
}  # fmt: skip


@pytest.mark.parametrize("stage", demo.STAGES, ids=NAMES)
def test_every_stage_reads_stages_before_it(stage, tmp_path):
    values = importlib.import_module(f"configs.demo.{stage.name}").get_config(str(tmp_path))
    config = from_dict(CONFIGS.get(stage.program, RLConfig), values.to_dict())
    read = [getattr(config, "start_from", ""), *(teacher.model for teacher in getattr(config, "teachers", ()))]
    read.append(getattr(config, "source", ""))
    before = {demo.end_of(other, tmp_path, {}) for other in demo.STAGES[: NAMES.index(stage.name)]}
    folders = {str(path.parent if path.name == "report.json" else path.parents[1]) for path in before}
    assert {path for path in read if path} <= folders
    assert any(read) == (stage.name not in ("pretrain", "experts"))


@pytest.fixture
def commands(monkeypatch):
    """The commands that would have been run; each ends with the code that stands in `commands.code`."""

    class Commands(list):
        code = 0

    ran = Commands()
    monkeypatch.setattr(demo, "run_to_end", lambda command: ran.append(command) or ran.code)
    return ran


@pytest.fixture
def safe(monkeypatch):
    """Without --allow_unsafe_sandbox: the flags of all programs, which other tests define, cannot be parsed here."""
    for module in (demo, sandboxed):
        monkeypatch.setattr(module, "ALLOW_UNSAFE", SimpleNamespace(value=False))


def test_a_complete_stage_is_not_run_again(tmp_path, commands):
    stage = demo.STAGES[3]
    steps = demo.load_config(stage.name, tmp_path).train.steps
    demo.run_stage(stage, tmp_path, {})
    (tmp_path / stage.name / "checkpoints" / str(steps - 1)).mkdir(parents=True)
    demo.run_stage(stage, tmp_path, {})
    assert len(commands) == 2 and f"--workdir={tmp_path / stage.name}" in commands[0]
    (tmp_path / stage.name / "checkpoints" / str(steps)).mkdir()
    demo.run_stage(stage, tmp_path, {})
    assert len(commands) == 2
    demo.run_stage(stage, tmp_path, {"train.steps": steps + 1})
    assert f"--config.train.steps={steps + 1}" in commands[2]


def test_a_stage_that_was_killed_after_its_last_checkpoint_is_ended(tmp_path, commands):
    """Samples are written after it."""
    stage = demo.STAGES[3]
    demo.end_of(stage, tmp_path, {}).mkdir(parents=True)
    commands.code = 137
    with pytest.raises(SystemExit):
        demo.run_stage(stage, tmp_path, {})
    commands.code = 0
    for runs in (2, 2):
        demo.run_stage(stage, tmp_path, {})
        assert len(commands) == runs
    shutil.rmtree(tmp_path / stage.name)
    commands.code = 137
    with pytest.raises(SystemExit):
        demo.run_stage(stage, tmp_path, {})
    demo.end_of(stage, tmp_path, {}).mkdir(parents=True)
    commands.code = 0
    demo.run_stage(stage, tmp_path, {})
    assert len(commands) == 4


def test_a_stage_of_another_config_is_not_complete(tmp_path, monkeypatch, commands):
    """Its program then says what is wrong with the folder."""
    stage = demo.STAGES[3]
    demo.end_of(stage, tmp_path, {}).mkdir(parents=True)
    for runs in (1, 1):
        demo.run_stage(stage, tmp_path, {})
        assert len(commands) == runs
    demo.run_stage(stage, tmp_path, {"samples": 0})
    assert len(commands) == 2
    tmp_path.rename(tmp_path.with_suffix(".moved"))
    demo.run_stage(stage, tmp_path.with_suffix(".moved"), {"samples": 0})
    assert len(commands) == 2


@pytest.mark.parametrize("left", ["functions.jsonl", "tasks.jsonl", "tokenizer"])
def test_a_folder_with_a_demo_of_other_tasks_is_refused(tmp_path, monkeypatch, left, safe):
    assert demo.begin(tmp_path)
    (tmp_path / left).touch()
    assert demo.begin(tmp_path)
    monkeypatch.setattr(demo, "VOCABULARY", 300)
    with pytest.raises(ValueError, match="has a demo with other tasks: remove it, or name another folder"):
        demo.begin(tmp_path)
    (tmp_path / "texts.json").unlink()
    with pytest.raises(ValueError, match="other tasks"):
        demo.begin(tmp_path)


@pytest.mark.parametrize("first", [True, False])
def test_a_demo_goes_on_as_it_began_whether_or_not_there_is_a_sandbox(tmp_path, monkeypatch, capsys, first):
    def refuse(environments):
        raise SandboxError(f"no sandbox for {environments}")

    starts = {True: lambda environments: None, False: refuse}
    monkeypatch.setattr(demo, "start_sandbox", starts[first])
    assert demo.begin(tmp_path) == first
    (tmp_path / "tasks.jsonl").touch()
    monkeypatch.setattr(demo, "start_sandbox", starts[not first])
    if first:
        with pytest.raises(SandboxError, match="no sandbox"):
            demo.begin(tmp_path)
    else:
        assert not demo.begin(tmp_path) and "began without a sandbox" in capsys.readouterr().out


def test_without_a_sandbox_no_stage_runs_code(tmp_path, monkeypatch, commands, capsys, safe):
    def refuse(environments):
        raise SandboxError(f"no sandbox for {environments}")

    assert demo.can_run_code()
    monkeypatch.setattr(demo, "start_sandbox", refuse)
    assert not demo.can_run_code() and "no sandbox for ['functions']" in capsys.readouterr().out
    for name in NAMES:
        changes, config = demo.NO_SANDBOX.get(name, {}), demo.load_config(name, tmp_path)
        assert ("'functions'" in str(config.to_dict())) == bool(changes)
        for field, value in changes.items():
            config_path.set_value(field, config, value)
        assert "'functions'" not in str(config.to_dict())
        demo.run_stage(demo.STAGES[NAMES.index(name)], tmp_path, changes)
        assert all(f"--config.{field}=search" in commands[-1] for field in changes)


def test_what_was_measured_of_a_stage_that_is_made_again_is_gone(tmp_path, commands, capsys):
    stage = demo.STAGES[3]
    for folder in ("evaluation/sft", "evaluation/evo_cot", "evo_cot"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "times.json").write_text('{"sft": 60.0, "evaluation of sft": 9.0, "evo_cot": 70.0}')
    demo.run_stage(stage, tmp_path, {})
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["evo_cot"]
    times = demo.read_times(tmp_path)
    assert times.keys() == {"sft", "evo_cot"} and times["sft"] < 60
    assert "evo_cot come from an earlier sft; remove their folders" in capsys.readouterr().out


def test_a_migration_is_complete_with_its_last_report(tmp_path, commands):
    stage = demo.STAGES[1]
    for folder, runs in (("2_mla_warmup", 1), ("3_continued", 1)):
        demo.run_stage(stage, tmp_path, {})
        assert len(commands) == runs
        (tmp_path / "migrate" / folder).mkdir(parents=True)
        (tmp_path / "migrate" / folder / "report.json").touch()
        commands.clear()
    demo.run_stage(stage, tmp_path, {})
    assert not commands


def test_a_stage_that_fails_ends_the_demo_with_its_code(tmp_path, commands, capsys):
    commands.code = 143
    with pytest.raises(SystemExit) as ended:
        demo.run_stage(demo.STAGES[4], tmp_path, {})
    assert ended.value.code == 143
    assert "evo_cot ended with exit code 143; the same command continues from there" in capsys.readouterr().out
    assert list(demo.read_times(tmp_path)) == ["evo_cot"]


def test_sigterm_is_passed_on_and_handlers_come_back():
    waits = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(7)); print(1); time.sleep(60)"
    handler = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert demo.run_to_end([sys.executable, "-c", waits]) == 7
    timer.join()
    assert signal.getsignal(signal.SIGTERM) is handler
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert demo.run_to_end([sys.executable, "-c", killed]) == 128 + signal.SIGKILL


def test_time_left_follows_the_machine():
    expected = [stage.full for stage in demo.STAGES]
    assert demo.remaining({}, 0, "full") == sum(expected)
    twice_as_slow = {stage.name: 2 * stage.full for stage in demo.STAGES[:3]}
    assert demo.remaining(twice_as_slow, 3, "full") == pytest.approx(2 * sum(expected[3:]))
    assert demo.remaining({}, 1, "quick") == sum(stage.quick for stage in demo.STAGES[1:])
    slow = {stage.name: 2 * stage.quick for stage in demo.STAGES[:4]}  # of which one is left out
    assert demo.remaining(slow, 3, "quick") == pytest.approx(2 * sum(stage.quick for stage in demo.STAGES[4:]))
    assert demo.time_left(twice_as_slow, 3, "full") == f"about {2 * sum(expected[3:]) / 60:.0f} minutes to the end"


def test_time_left_is_a_range_before_the_machine_is_known():
    low, high = (round(sum(stage.full for stage in demo.STAGES) / 60 * factor) for factor in (0.9, 4.0))
    assert demo.time_left({}, 0, "full") == f"{low} to {high} minutes to the end, by the machine"


def test_time_of_a_stage_adds_up_over_starts(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), demo.timed(tmp_path, "sft"):
            raise KeyboardInterrupt
    first = demo.read_times(tmp_path)["sft"]
    with demo.timed(tmp_path, "sft"):
        pass
    assert demo.read_times(tmp_path)["sft"] > first > 0


def quick(folder) -> list[str]:
    return [sys.executable, "-m", "launch.demo", "--preset=quick", f"--workdir={folder}"]


def kpop_replay(folder) -> list[str]:
    """The command that runs the quick demo's last stage again by its log."""
    config = [f"--config={demo.CONFIGS / 'kpop.py'}:{folder}", f"--workdir={folder / 'kpop'}", "--replay"]
    changes = [f"--config.{name}={value}" for name, value in demo.QUICK["kpop"].items()]
    return [sys.executable, "-m", "launch.rl", *config, *changes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a quick demo in one go, and its output."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, subprocess.run(quick(folder), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_kills_change_nothing_in_any_stage(whole, tmp_path):
    """KPop's rollouts are generated beside its steps, by the clock: it is its replay that is the same."""
    folder = tmp_path / "run"
    hits = run_with_kills(quick(folder), kills=10, longest=35, seed=0, log=tmp_path / "log")
    assert len(hits) >= 5, hits
    runs = runs_below(whole[0])
    assert len(runs) == len(QUICK_NAMES) + 3  # a migration's four stages are runs
    assert runs == runs_below(folder)
    for run in set(runs) - {"kpop"}:
        assert_same_end(whole[0] / run, folder / run)
    files = [*whole[0].glob("evaluation/*/*"), *whole[0].glob("*/samples.jsonl")]
    for path in (path for path in files if path.parent.name != "kpop"):
        assert path.read_bytes() == (folder / path.relative_to(whole[0])).read_bytes(), path
    for demo_folder in (whole[0], folder):
        done = subprocess.run(kpop_replay(demo_folder), cwd=ROOT, capture_output=True, text=True)
        steps = demo.QUICK["kpop"]["train.steps"]
        assert f"{steps} steps are the same, bit for bit" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_quick_demo_runs_all_stages_and_then_none(whole):
    folder, first = whole
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "the logits are bit-equal" in first.stdout
    report = json.loads((folder / "report.json").read_text())
    assert [row["name"] for row in report["stages"]] == QUICK_NAMES
    assert 0 < report["claims"][0]["value"] < 1e-4  # wrong weights, masks or positions differ by far more
    again = subprocess.run(quick(folder), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("complete: ") == len(QUICK_NAMES)
    assert json.loads((folder / "report.json").read_text())["findings"] == report["findings"]
    assert (folder / "hf" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_what_the_demo_compares_with_can_be_trained(whole):
    command = [sys.executable, "-m", "benchmarks.alignment", "--preset=quick", f"--workdir={whole[0]}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]  # 1: two roundings are apart
    names = [found["name"] for found in json.loads((whole[0] / "alignment" / "report.json").read_text())["findings"]]
    assert names == [expected.name for expected in COMPARED]


@pytest.mark.slow
def test_the_page_of_the_quick_demo_is_whole(whole):
    """tests/launch/test_demo_page.py has the same promises for a page of made-up numbers."""
    page = whole[0] / "report.html"
    with chromium_or_skip() as browser:
        for width, scheme in itertools.product((1200, 390), ("light", "dark")):
            tab = open_file(browser, page, width, scheme)
            figures = figures_of(tab)
            assert len(figures) > 15 and [f for f in figures if not f["marks"] or f["cut_off"]] == []
            assert (tab.errors, tab.requests, too_wide(tab)) == ([], [page.as_uri()], [])
