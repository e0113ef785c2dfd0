"""A step that hangs ends the run with the stacks of all threads and an exit code of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ling_jax.distributed.hosts import EXIT_HUNG
from ling_jax.run.watchdog import POLLS, watch_steps
from tests.helpers.faults import ROOT
from tests.helpers.small_run import write_corpus
from tests.launch.test_many_hosts import free_port, started, wait_for

HANGS = """
import sys, threading
from ling_jax.run.watchdog import watch_steps

def read_a_fifo():
    open(sys.argv[1] + "/fifo").read()

with watch_steps(sys.argv[1], 1) as ended:
    for step in range(5):
        ended()
    read_a_fifo()
"""


def test_a_process_that_hangs_leaves_its_stacks_and_an_exit_code(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # nobody writes into it
    done = subprocess.run([sys.executable, "-c", HANGS, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == EXIT_HUNG == 75
    stacks = (tmp_path / "stacks" / "host_0.txt").read_text()
    assert stacks in done.stderr and "line 6 in read_a_fifo" in stacks and "watchdog.py" in stacks
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: no step ended in 1 seconds") and f"{tmp_path}/stacks" in last


UNHEARD = """
import os, sys, time
from ling_jax import messages
from ling_jax.run.watchdog import watch_steps

messages.PRINT_SECONDS = 0.2
with watch_steps(sys.argv[1], 0.5) as ended:
    for step in range(5):
        ended()
    if sys.argv[2] == "closed":
        os.close(2)
        time.sleep(600)
    while True:
        print("a line of a log" * 100, file=sys.stderr, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stderr", ["closed", "that nobody reads"])
def test_a_process_that_hangs_ends_whatever_its_output_is(tmp_path, stderr):
    """Of `run | tee /nfs/log` it may be tee that hangs."""
    with subprocess.Popen([sys.executable, "-c", UNHEARD, tmp_path, stderr], stderr=subprocess.PIPE, cwd=ROOT) as hung:
        assert hung.wait(timeout=60) == EXIT_HUNG
    assert "watchdog.py" in (tmp_path / "stacks" / "host_0.txt").read_text()


def test_what_ends_in_time_is_left_alone_and_so_are_the_first_steps(tmp_path):
    with watch_steps(tmp_path, 0.2) as ended:
        ended()
        time.sleep(0.5)  # compiles
        for _ in range(20):
            ended()
            time.sleep(0.2 / POLLS)
    with watch_steps(tmp_path, 0):
        pass
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_suspended_host_ends_the_others_with_stacks(tmp_path, monkeypatch):
    """Host 1 is stopped; host 0 waits for it in a step, and its watchdog is faster than the sign of life."""
    write_corpus(tmp_path / "corpus")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    command = [sys.executable, "-m", "launch.pretrain", f"--config={ROOT / 'tests/helpers/small_run.py'}"]
    command += [f"--config.data.sources=({{'kind': 'text', 'path': '{tmp_path / 'corpus'}'}},)"]
    command += ["--config.model.num_layers=1", "--config.model.mtp_depth=0", "--config.train.steps=100000"]
    command += ["--config.train.hang_seconds=20"]
    with started(command, 2, tmp_path / "run", timeout=240) as programs:
        wait_for(lambda: "step=20/" in programs[0].stdout, *programs)
        programs[1].process.send_signal(signal.SIGSTOP)
        assert programs[0].returncode == EXIT_HUNG
        assert "stacks of host 0 (" in programs[0].stderr and "hang_seconds" in programs[0].stderr
    assert "Thread 0x" in (tmp_path / "run" / "stacks" / "host_0.txt").read_text()
    with started([*command, "--config.train.steps=40"], 2, tmp_path / "run") as programs:
        assert [program.returncode for program in programs] == [0, 0]


@pytest.mark.slow
def test_a_host_whose_data_hangs_ends_all_with_the_stacks_of_all(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    os.mkfifo(tmp_path / "fifo")
    command = [sys.executable, "-m", "tests.helpers.hanging_host", str(tmp_path)]
    log = tmp_path / "logs"
    log.mkdir()
    port, programs = free_port(), []
    for host in range(2):
        with (log / f"{host}.err").open("w") as err:
            programs.append(subprocess.Popen([*command, str(port), str(host)], stderr=err, cwd=ROOT))
    assert [program.wait(timeout=300) for program in programs] == [EXIT_HUNG] * 2
    stacks = [(tmp_path / "stacks" / f"host_{host}.txt").read_text() for host in range(2)]
    assert "read_a_fifo" in stacks[1] and "wait_for_the_other" in stacks[0]
