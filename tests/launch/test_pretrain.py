import os
import signal
import subprocess
import sys

import pytest

from tests.faults import ROOT, assert_same_end, run_with_kills
from tests.small_run import write_corpus


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The program on a small corpus, without its workdir."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_corpus(folder / "corpus")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    sources = f"({{'kind': 'text', 'path': '{folder / 'corpus'}'}},)"
    config = [f"--config={ROOT / 'tests/small_run.py'}", f"--config.data.sources={sources}"]
    yield [sys.executable, "-m", "launch.pretrain", *config]
    del os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("alone")
    done = run(command, workdir, *LONGER)
    assert done.returncode == 0, done.stderr
    assert "step=12/60" in done.stdout and "tokens/s=" in done.stdout and "eta=" in done.stdout
    return workdir


LONGER = ("--config.train.steps=60", "--config.train.batch_size=16", "--config.train.eval_every=20")


def run(command, workdir, *more):
    return subprocess.run([*command, f"--workdir={workdir}", *more], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train.step=3", "config.train has no field 'step', did you mean 'steps'?"),
        ("--config.model.hiden_size=3", "config.model has no field 'hiden_size', did you mean 'hidden_size'?"),
        ("--config.train.steps.x=3", "--config.train.steps is a value; it has no field 'x'"),
        ("--config.train.steps=many", "flag --config.train.steps=many: invalid literal for int()"),
        ("--config.train.steps=0", "train.steps is 0; it must be at least 1"),
        ("--config.model.num_norm_groups=3", "num_norm_groups 3 does not divide"),
        ("--config.data.sequence_length=1000", "data.sequence_length is 1000; the model's context"),
        ("--config.data.sources=({'kind': 'test', 'path': 'x'},)", "'test' is unknown, did you mean 'text'?"),
        ("--config.data.sources=({'kind': 'text', 'paths': 'x'},)", "config.data.sources[1].paths is unknown"),
        ("--worker=3", "Unknown command line flag 'worker'"),
        ("steps=3", "'steps=3' is no flag"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(command, tmp_path, flag, message):
    done = run(command, tmp_path / "run", flag)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_config_is_bad_usage(command, tmp_path):
    for flags in (["--config=none.py"], []):
        done = run([*command[:3], *flags], tmp_path / "run")
        assert done.returncode == 2 and "config" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_goes_on(command, alone, tmp_path, number):
    program = subprocess.Popen(
        [*command, f"--workdir={tmp_path}", *LONGER], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    for line in program.stdout:
        if line.startswith("step="):
            program.send_signal(number)
            break
    rest = program.stdout.read()
    assert program.wait() == 128 + number
    assert "saved step=" in rest and "the same command goes on" in rest
    assert run(command, tmp_path, *LONGER).returncode == 0
    assert_same_end(alone, tmp_path)


def test_kills_change_nothing(command, alone, tmp_path):
    killed = [*command, f"--workdir={tmp_path / 'run'}", *LONGER]
    hits = run_with_kills(killed, kills=3, longest=10, seed=0, log=tmp_path / "log")
    assert hits
    assert_same_end(alone, tmp_path / "run")


@pytest.mark.slow
def test_twenty_kills_change_nothing(command, tmp_path):
    long = [*LONGER, "--config.train.steps=4000", "--config.train.save_every=20", "--config.train.eval_every=200"]
    assert run(command, tmp_path / "alone", *long).returncode == 0
    killed = [*command, f"--workdir={tmp_path / 'run'}", *long]
    # A start takes about half of `longest`, so half of the kills hit it and half hit steps and saves.
    hits = run_with_kills(killed, kills=20, longest=16, seed=0, log=tmp_path / "log")
    assert len(hits) == 20
    assert_same_end(tmp_path / "alone", tmp_path / "run")
