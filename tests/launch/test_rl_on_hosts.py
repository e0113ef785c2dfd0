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

# (mesh, devices): two numbers have one sum, four have several, by the order that the collectives take.
TWO = ["--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.engine.data=2"]
FOUR = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.engine.data=4"]
EVERYTHING = ["--config.objective.reference_kl=0.1", "--config.train.save_every=2", "--config.train.eval_every=2"]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The program from a small start, without its workdir and hosts."""
    folder = tmp_path_factory.mktemp("rl")
    start = write_start(folder / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        config = [f"--config={ROOT / 'configs/rl/tiny_kpop.py'}", f"--config.start_from={start}"]
        yield [sys.executable, "-m", "launch.rl", *config, *SMALL, *EVERYTHING, "--config.train.steps=4"]


def devices(count: int):
    """The environment of a process with so many of the devices."""
    flag = f"--xla_force_host_platform_device_count={count}"
    return lambda host: {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The workdir of one process with two devices that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    (done,) = run_hosts(command, 1, workdir, *TWO, env=devices(2))
    assert done.returncode == 0, done.stderr
    return workdir


def test_two_hosts_leave_the_bits_that_one_process_leaves(command, alone, tmp_path):
    first, second = run_hosts(command, 2, tmp_path / "run", *TWO, env=devices(1))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert_same_end(alone, tmp_path / "run")
    assert "step=4/4" in first.stdout and "step=" not in second.stdout


def test_an_engine_on_devices_of_its_own_leaves_the_bits_of_one_that_shares(command, alone, tmp_path):
    (done,) = run_hosts(command, 1, tmp_path / "run", *TWO, "--config.engine_devices=2", env=devices(4))
    assert done.returncode == 0, done.stderr
    assert "mesh fsdp=2; the engine has 2 others" in done.stdout and "of trainer, on others" in done.stdout
    assert_same_end(alone, tmp_path / "run")


def test_engine_devices_that_cannot_be_are_refused(command, tmp_path):
    (none_left,) = run_hosts(command, 1, tmp_path / "run", "--config.engine_devices=2", env=devices(2))
    assert "engine_devices is 2 of 2 devices, which leaves none for the weights that learn" in none_left.stderr
    both = run_hosts(command, 2, tmp_path / "two", "--config.engine_devices=1", env=devices(2))
    assert all("engine_devices is 1, on 2 processes" in done.stderr for done in both)


def test_four_hosts_leave_the_bits_of_one_process_with_the_same_collectives(command, tmp_path):
    """Between processes JAX adds by Gloo; one process with four devices does so, too, where it is told to."""
    one_process = [sys.executable, "-m", "tests.helpers.one_gloo_process", *command[2:]]
    (done,) = run_hosts(one_process, 1, tmp_path / "one", *FOUR, env=devices(4))
    assert done.returncode == 0, done.stderr
    programs = run_hosts(command, 4, tmp_path / "four", *FOUR, env=devices(1))
    assert [program.returncode for program in programs] == [0] * 4, "".join(p.stderr for p in programs)
    assert_same_end(tmp_path / "one", tmp_path / "four")


def test_a_run_of_hosts_that_a_signal_stopped_goes_on_in_one_process(command, alone, tmp_path):
    """The signal is the second host's, which passes it on."""
    workdir = tmp_path / "run"
    with started(command, 2, workdir, *TWO, env=devices(1)) as (first, second):
        wait_for(lambda: "step=1/4" in first.stdout, first, second)
        second.process.send_signal(signal.SIGTERM)
        assert [first.returncode, second.returncode] == [128 + signal.SIGTERM] * 2, first.stderr + second.stderr
    assert "SIGTERM: saved at step" in first.stdout
    (again,) = run_hosts(command, 1, workdir, *TWO, env=devices(2))
    assert again.returncode == 0, again.stderr
    assert_same_end(alone, workdir)


def test_a_host_that_is_killed_ends_the_others_by_its_name(command, alone, tmp_path):
    workdir = tmp_path / "run"
    with started(command, 2, workdir, *TWO, env=devices(1), timeout=20) as (first, second):
        wait_for(lambda: "saved step=2" in first.stdout, first, second)
        second.process.kill()
        assert first.returncode == 1 and "host 1" in first.stderr, first.stderr
    again = run_hosts(command, 2, workdir, *TWO, env=devices(1))
    assert [program.returncode for program in again] == [0, 0], again[0].stderr + again[1].stderr
    assert_same_end(alone, workdir)
