"""Signals before the first step, or to programs that save nothing: one line, an exit code, nothing half-written."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.faults import ROOT, metrics_of
from tests.helpers.small_run import write_corpus

WORKS = """
import sys, time
from launch.flags import run_program

def main():
    try:
        print("working", flush=True)
        time.sleep(600)
    finally:
        print("cleaned up", flush=True)

run_program(main)
"""
BUSY = """
import hashlib
from launch import interrupts
from launch.flags import run_program

def main():
    interrupts.CLEAN_SECONDS = 0.2
    print("working", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # a library that does not look at signals

run_program(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_program_with_one_line_after_its_way_out(number):
    with subprocess.Popen(
        [sys.executable, "-c", WORKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as program:
        assert program.stdout.readline() == "working\n"
        program.send_signal(number)
        out, err = program.communicate(timeout=60)
    assert program.returncode == 128 + number and out == "cleaned up\n"
    assert err == f"{signal.Signals(number).name}: ended; the same command starts again\n"


def test_a_library_that_does_not_return_is_not_waited_for():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as program:
        assert program.stdout.readline() == "working\n"
        program.send_signal(signal.SIGTERM)
        _, err = program.communicate(timeout=60)
    assert program.returncode == 143 and err == "SIGTERM: ended; the same command starts again\n"


def test_a_signal_ends_a_program_whose_output_nobody_reads():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as program:
        assert program.stdout.readline() == "working\n"
        program.stdout.close()
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=60) == 130


def test_a_signal_during_the_imports_is_one_line():
    command = [sys.executable, "-v", "-m", "launch.pretrain", "--help"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT) as program:
        for line in program.stderr:
            if line.startswith("import 'ml_collections'") or "import 'absl'" in line:
                break
        program.send_signal(signal.SIGINT)
        left = program.stderr.read()
    assert program.returncode == 130
    assert "SIGINT: ended; the same command starts again" in left and "Traceback" not in left


@pytest.mark.slow
def test_signals_at_random_moments_before_the_first_step_leave_nothing_half_written(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    write_corpus(tmp_path / "corpus", documents=400)
    command = [sys.executable, "-m", "launch.pretrain", f"--config={ROOT / 'tests/helpers/small_run.py'}"]
    command += [f"--config.data.sources=({{'kind': 'text', 'path': '{tmp_path / 'corpus'}'}},)"]
    command += ["--config.model.num_layers=1", "--config.model.mtp_depth=0", f"--workdir={tmp_path / 'run'}"]
    rng, moments = random.Random(0), []
    begun = time.monotonic()
    done = subprocess.run([*command[:-1], f"--workdir={tmp_path / 'alone'}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    longest = time.monotonic() - begun
    for _ in range(20):
        number = rng.choice([signal.SIGTERM, signal.SIGINT])
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as program:
            time.sleep(0.3 + rng.uniform(0, longest))
            program.send_signal(number)
            out, err = program.communicate(timeout=120)
        moments.append((out + err).splitlines()[-1])
        if program.returncode == 0:  # it was over
            break
        assert program.returncode == 128 + number, (out, err)
        assert "Traceback" not in err and "Error" not in err, err
        said = [line for line in (out + err).splitlines() if signal.Signals(number).name in line]
        assert said, (out, err)
        partial = [path for path in tmp_path.rglob(".*partial*") if "compiled" not in path.parts]
        assert not partial, (partial, moments)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "alone")
    assert any("starts again" in moment for moment in moments), moments
    print(*moments, sep="\n")


LIMITS = {1_000_000: "1.02 GB", 2_400_000: "2.46 GB"}


@pytest.mark.parametrize("kilobytes", LIMITS)
def test_too_little_address_space_is_named_at_once(kilobytes, tmp_path):
    command = f"ulimit -v {kilobytes}; exec {sys.executable} -m launch.pretrain --config=x --workdir={tmp_path / 'run'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        f"error: not enough memory: the limit of address space (ulimit -v) is {LIMITS[kilobytes]}"
    )
    assert "needs about 2.5 GB and its model" in done.stderr and not os.listdir(tmp_path)
