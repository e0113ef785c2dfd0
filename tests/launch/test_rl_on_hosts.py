"""Several processes run one run of reinforcement learning: the first one decides, and all leave what one leaves."""

import os
import signal
import sys

import pytest

from tests.helpers.faults import ROOT, assert_same_end
from tests.helpers.rl_run import write_start
from tests.launch.test_many_hosts import run_hosts, started, wait_for
from tests.launch.test_rl import SMALL

pytestmark = pytest.mark.slow

# Four devices in all, whatever the number of processes.
MESH = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.engine.data=4", "--config.train.steps=4"]
EVERYTHING = ["--config.objective.reference_kl=0.1", "--config.train.save_every=2", "--config.train.eval_every=2"]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The program from a small start, without its workdir and hosts."""
    folder = tmp_path_factory.mktemp("rl")
    start = write_start(folder / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        config = [f"--config={ROOT / 'configs/rl/tiny_kpop.py'}", f"--config.start_from={start}"]
        yield [sys.executable, "-m", "launch.rl", *config, *SMALL, *MESH, *EVERYTHING]


def devices(count: int):
    """The environment of a process with so many of the devices."""
    flag = f"--xla_force_host_platform_device_count={count}"
    return lambda host: {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The workdir of one process with four devices that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    (done,) = run_hosts(command, 1, workdir, env=devices(4))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_leave_the_bits_that_one_process_leaves(command, alone, tmp_path, count):
    programs = run_hosts(command, count, tmp_path / "run", env=devices(4 // count))
    assert [program.returncode for program in programs] == [0] * count, "".join(p.stderr for p in programs)
    assert_same_end(alone, tmp_path / "run")
    assert "step=4/4" in programs[0].stdout and "step=" not in programs[1].stdout


def test_a_run_of_hosts_that_a_signal_stopped_goes_on_in_one_process(command, alone, tmp_path):
    """The signal is the second host's, which passes it on."""
    workdir = tmp_path / "run"
    with started(command, 2, workdir, env=devices(2)) as (first, second):
        wait_for(lambda: "step=1/4" in first.stdout, first, second)
        second.process.send_signal(signal.SIGTERM)
        assert [first.returncode, second.returncode] == [128 + signal.SIGTERM] * 2, first.stderr + second.stderr
    assert "SIGTERM: saved at step" in first.stdout
    (again,) = run_hosts(command, 1, workdir, env=devices(4))
    assert again.returncode == 0, again.stderr
    assert_same_end(alone, workdir)


def test_a_host_that_is_killed_ends_the_others_by_its_name(command, alone, tmp_path):
    workdir = tmp_path / "run"
    with started(command, 2, workdir, env=devices(2), timeout=20) as (first, second):
        wait_for(lambda: "saved step=2" in first.stdout, first, second)
        second.process.kill()
        assert first.returncode == 1 and "host 1" in first.stderr, first.stderr
    (again,) = run_hosts(command, 1, workdir, env=devices(4))
    assert again.returncode == 0, again.stderr
    assert_same_end(alone, workdir)
