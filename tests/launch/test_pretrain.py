import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers.faults import ROOT, assert_same_end, run_with_kills, step_seconds
from tests.helpers.refusals import run_each
from tests.helpers.small_run import write_corpus


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The program on a small corpus, without its workdir."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_corpus(folder / "corpus")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    sources = f"({{'kind': 'text', 'path': '{folder / 'corpus'}'}},)"
    config = [f"--config={ROOT / 'tests/helpers/small_run.py'}", f"--config.data.sources={sources}"]
    yield [sys.executable, "-m", "launch.pretrain", *config]
    del os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("alone")
    done = run(command, workdir, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "step=12/60" in done.stdout and "tokens/s=" in done.stdout and "eta=" in done.stdout
    return workdir


LONGER = ("--config.train.steps=60", "--config.train.batch_size=16", "--config.train.eval_every=20")
# What is killed matters little here, and a small program starts fast; all kinds of layers resume in test_loop.py.
SHORT = (*LONGER, "--config.model.num_layers=1", "--config.model.mtp_depth=0", "--config.train.save_every=10")


@contextlib.contextmanager
def program_at_its_first_step(command, workdir, *more):
    command = [*command, f"--workdir={workdir}", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as program:
        assert any(line.startswith("step=") for line in program.stdout)
        yield program


def run(command, workdir, *more):
    return subprocess.run([*command, f"--workdir={workdir}", *more], capture_output=True, text=True, cwd=ROOT)


BAD_FLAGS = {
    "--config.train.step=3": "config.train has no field 'step', did you mean 'steps'?",
    "--config.model.hiden_size=3": "config.model has no field 'hiden_size', did you mean 'hidden_size'?",
    "--config.train.steps.x=3": "--config.train.steps is a value; it has no field 'x'",
    "--config.data.sources[1].kind=text": "--config.data.sources[1].kind: config.data.sources has no item 1",
    "--config.data.sources[-2].kind=text": "config.data.sources has no item -2",
    "--config.data.sources[x].kind=text": "items have numbers, as in config.data.sources[0]",
    "--config.data.sources[0]=x": "is a whole item; override its fields, or all of config.data.sources",
    "--config.data.sources[0].pth=x": "config.data.sources[0] has no field 'pth', did you mean 'path'?",
    "--config.data.sources[0].kind=test": "'test' is unknown, did you mean 'text'?",
    "--config.train.steps=many": "--config.train.steps=many is no whole number",
    "--config.train.steps=0": "train.steps is 0; it must be positive",
    "--config.model.num_norm_groups=3": "num_norm_groups 3 does not divide",
    "--config.data.sequence_length=1000": "data.sequence_length is 1000; the model's context",
    "--config.data.sources=({'kind': 'test', 'path': 'x'},)": "'test' is unknown, did you mean 'text'?",
    "--config.data.sources=({'kind': 'text', 'paths': 'x'},)": "config.data.sources[1].paths is unknown",
    "--config.model.compute_dtype=int32": "compute_dtype is 'int32'; it is one of float32",
    "--config.optimizer.b1=2.0": "optimizer.b1 is 2.0; it must be at least 0 and below 1",
    "--config.train.seed=-1": "train.seed is -1; it must not be negative",
    "--config.mesh.context=2": "does not fill",
    "--worker=3": "there is no flag --worker",
    "steps=3": "'steps=3' is no flag",
}


def test_bad_usage_is_one_message_and_exit_code_2(command, tmp_path):
    flags = [*command[3:], f"--workdir={tmp_path / 'run'}"]
    for (flag, message), done in zip(
        BAD_FLAGS.items(), run_each("launch.pretrain", [[*flags, flag] for flag in BAD_FLAGS]), strict=True
    ):
        assert done.returncode == 2, f"{flag}: {done}"
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, f"{flag}: {done.stderr}"
    assert not (tmp_path / "run").exists()


BAD_FILES = {
    "absent": (None, "absent.py does not exist; name a file such as configs/pretrain/tiny_2_6.py"),
    "syntax": ("def get_config(:\n", "syntax.py: SyntaxError"),
    "raises": ("\ndef get_config():\n    return 1 / 0\n", "raises.py, line 3: ZeroDivisionError"),
    "dict": ("def get_config():\n    return {}\n", "dict.py: get_config() gives a dict"),
    "books": ("def get_config():\n    raise FileNotFoundError('no books')\n", "earlier failure to load: no books"),
    "empty": ("", "empty.py: AttributeError"),
}


def test_a_config_file_that_fails_is_named(tmp_path):
    for name, (content, _) in BAD_FILES.items():
        if content is not None:
            (tmp_path / f"{name}.py").write_text(content)
    commands = [[f"--config={tmp_path}/{name}.py", f"--workdir={tmp_path}/run"] for name in BAD_FILES]
    *named, without = run_each("launch.pretrain", [*commands, [f"--workdir={tmp_path}/run"]])
    for (_, message), done in zip(BAD_FILES.values(), named, strict=True):
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done
    assert without.returncode == 2 and "--config" in without.stderr and "Traceback" not in without.stderr
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(command, alone, tmp_path):
    shutil.copytree(alone, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "60" / "state")
    refused = run(command, tmp_path / "run", *SHORT, "--config.train.steps=61", "--strict")
    assert refused.returncode in (1, 2) and "checkpoints/60" in refused.stderr and "Traceback" not in refused.stderr
    done = run(command, tmp_path / "run", *SHORT)
    assert done.returncode == 0 and "DAMAGED CHECKPOINT" in done.stderr, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "60.damaged").is_dir()
    assert_same_end(alone, tmp_path / "run")


def test_a_workdir_belongs_to_one_program_at_a_time(command, tmp_path):
    with program_at_its_first_step(command, tmp_path, *SHORT, "--config.train.steps=100000") as first:
        second = run(command, tmp_path, *SHORT)
        assert second.returncode == 2 and "is in use by another process" in second.stderr
        first.kill()
    assert run(command, tmp_path, *SHORT, "--config.train.steps=4").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_goes_on(command, alone, tmp_path, number):
    with program_at_its_first_step(command, tmp_path, *SHORT) as program:
        program.send_signal(number)
        rest = program.stdout.read()
    assert program.returncode == 128 + number
    assert "saved step=" in rest and "the same command continues" in rest
    assert run(command, tmp_path, *SHORT).returncode == 0
    assert_same_end(alone, tmp_path)


@pytest.mark.slow
def test_kills_between_steps_change_nothing(command, alone, tmp_path):
    for seconds in (0.0, 0.3):
        with program_at_its_first_step(command, tmp_path, *SHORT) as program:
            time.sleep(seconds)
            program.kill()
        assert program.returncode == -signal.SIGKILL
    assert run(command, tmp_path, *SHORT).returncode == 0
    assert_same_end(alone, tmp_path)


@pytest.mark.slow
def test_twenty_kills_change_nothing(command, tmp_path):
    long = [*LONGER, "--config.train.steps=4000", "--config.train.save_every=40", "--config.train.eval_every=200"]
    assert run(command, tmp_path / "alone", *long).returncode == 0
    killed = [*command, f"--workdir={tmp_path / 'run'}", *long]
    # A start takes about half of `longest`, so half of the kills hit it and half hit steps and saves.
    hits = run_with_kills(killed, kills=20, longest=12, seed=0, log=tmp_path / "log")
    assert len(hits) == 20
    assert_same_end(tmp_path / "alone", tmp_path / "run")


@pytest.mark.slow
def test_kills_of_a_run_that_started_from_another_change_nothing(command, alone, tmp_path):
    flags = [*SHORT, f"--config.start_from={alone}"]
    done = run(command, tmp_path / "alone", *flags)
    assert done.returncode == 0 and f"starts from {alone}, step 60: the model is as there" in done.stdout, done
    killed = [*command, f"--workdir={tmp_path / 'run'}", *flags]
    longest = step_seconds(tmp_path / "alone") / 2
    hits = run_with_kills(killed, kills=4, longest=longest, seed=0, log=tmp_path / "log", begin="step=")
    assert len(hits) >= 2, hits
    assert_same_end(tmp_path / "alone", tmp_path / "run")


@pytest.mark.slow
def test_rows_split_among_devices_are_trained_on_alike(command, tmp_path, monkeypatch):
    """Two simulated devices; rounding alone differs, and grows with the steps."""
    flags = ["--config.train.steps=6", "--config.train.log_every=1", "--config.model.compute_dtype=float32"]
    assert run(command, tmp_path / "whole", *flags).returncode == 0
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    flags += ["--config.mesh.data=1", "--config.mesh.context=2"]
    done = run(command, tmp_path / "split", *flags)
    assert done.returncode == 0, done.stderr
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "split")
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=1e-4)
    done = run(command, tmp_path / "odd", *flags, "--config.data.sequence_length=34")
    assert done.returncode == 2 and "rows of 34 tokens cannot be split among 2 ranks" in done.stderr
    assert not (tmp_path / "odd" / "tokenizer").exists()
