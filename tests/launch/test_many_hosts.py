"""Real processes with JAX's own collectives between them: what one of them does, all of them do, or say why not."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ling_jax.checkpoint import manifest
from tests.helpers import damage
from tests.helpers.faults import ROOT, final_state, metrics_of
from tests.helpers.small_run import write_corpus
from tests.helpers.small_stage import write_stage

# Two devices add two numbers in one order; one device adds the same rows in another, and four have several orders.
# In float32 that is a few units in the last place at each step, and steps build on each other.
LOSS_TOLERANCE = 1e-6
LONGEST = 3600  # seconds, on a machine that is very busy
# A small program starts fast. Its state is large enough that a save takes longer than to notice it.
SMALL = [
    "--config.model.num_layers=1",
    "--config.model.mtp_depth=0",
    "--config.train.batch_size=8",
    "--config.train.save_every=10",
    "--config.train.steps=30",
]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The program on a small corpus, without its workdir and hosts."""
    folder = tmp_path_factory.mktemp("hosts")
    write_corpus(folder / "corpus")
    sources = f"({{'kind': 'text', 'path': '{folder / 'corpus'}'}},)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        config = [f"--config={ROOT / 'tests/helpers/small_run.py'}", f"--config.data.sources={sources}"]
        yield [sys.executable, "-m", "launch.pretrain", *config, *SMALL]


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The workdir of one process that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("alone")
    (done,) = run_hosts(command, 1, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


class Program:
    """One of the processes of a run, its output in files."""

    def __init__(self, command, log: Path, env):
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, env=os.environ | env)

    stdout = property(lambda self: self._out.read_text())
    stderr = property(lambda self: self._err.read_text())
    returncode = property(lambda self: self.process.wait(timeout=LONGEST))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def started(
    command, count: int, workdir, *more, each=lambda host: (), env=lambda host: {}, where=None, log=None, timeout=240
):
    """The programs of a run on so many hosts; `each` and `env` give what one of them has for itself.

    `where` tells all of them who the others are; None: flags do.
    """
    port = free_port()
    places = [(f"--coordinator=localhost:{port}", f"--num_hosts={count}", f"--host={host}") for host in range(count)]
    if where is not None or count == 1:
        places = [where or ()] * count
    log = log or Path(f"{workdir}.logs")
    log.mkdir(exist_ok=True)
    command = [*command, f"--workdir={workdir}", f"--host_timeout={timeout}", *more]
    programs = [Program([*command, *places[host], *each(host)], log / f"{host}", env(host)) for host in range(count)]
    try:
        yield programs
    finally:
        for program in programs:
            program.process.kill()
            program.process.wait()


def run_hosts(command, count: int, workdir, *more, **how) -> list[Program]:
    with started(command, count, workdir, *more, **how) as programs:
        for program in programs:
            program.process.wait(timeout=LONGEST)
    return programs


def wait_for(seen, *programs: Program) -> None:
    while not seen():
        assert all(program.process.poll() is None for program in programs), programs[0].stderr
        time.sleep(0.001)


def assert_same_run(wanted: Path, found: Path, steps: int = 30) -> None:
    """The same tokens at every step, and losses that differ by rounding in the first so many."""
    lines, others = metrics_of(wanted), metrics_of(found)
    assert [line["step"] for line in others] == list(range(len(lines)))
    for line, other in zip(lines, others, strict=True):
        assert (line["tokens"], line["loss_tokens"]) == (other["tokens"], other["loss_tokens"])
        for name in ("main_loss", "eval_loss") if line["step"] < steps else ():
            assert (name in line) == (name in other)
            assert other.get(name, 0) == pytest.approx(line.get(name, 0), rel=LOSS_TOLERANCE), line["step"]


def test_two_hosts_train_what_one_does(command, alone, tmp_path):
    first, second = run_hosts(command, 2, tmp_path / "run")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert_same_run(alone, tmp_path / "run")
    assert "step=30/30" in first.stdout and "step=" not in second.stdout
    checkpoint = tmp_path / "run" / "checkpoints" / "30"
    files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert manifest.read(checkpoint)["files"].keys() == files - {manifest.FILE_NAME}
    assert any("process_1/" in name for name in files) and manifest.verify(checkpoint)


@pytest.mark.slow
def test_damage_that_one_host_finds_sends_all_to_the_checkpoint_before(command, alone, tmp_path):
    """The hosts divide the files: none of them looks at all."""
    workdir = tmp_path / "run"
    run_hosts(command, 2, workdir)
    for number in (0, 1):
        of_host = sorted((workdir / "checkpoints" / "30" / "state" / f"ocdbt.process_{number}").rglob("*"))
        damage.flip_bit([path for path in of_host if path.is_file()], random.Random(number))
        first, second = run_hosts(command, 2, workdir)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert f"ocdbt.process_{number}/" in first.stderr and "checkpoint 20 is read" in first.stderr
        assert "WARNING" not in second.stderr
        assert manifest.verify(workdir / "checkpoints" / "30")
        assert_same_run(alone, workdir)


@pytest.mark.slow
def test_four_hosts_that_slurm_started_train_what_one_does(command, alone, tmp_path):
    """Their devices share rows (tensor) and weights (fsdp)."""
    slurm = dict(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="4", SLURM_LOCALID="0")
    slurm["JAX_COORDINATOR_PORT"] = str(free_port())
    environment = lambda host: slurm | {"SLURM_PROCID": str(host)}  # noqa: E731
    mesh = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    programs = run_hosts(command, 4, tmp_path / "run", *mesh, env=environment, where=())
    assert [program.returncode for program in programs] == [0] * 4, programs[0].stderr
    assert_same_run(alone, tmp_path / "run")


@pytest.mark.slow
def test_two_hosts_have_the_bits_of_two_devices(command, tmp_path, monkeypatch):
    run_hosts(command, 2, tmp_path / "hosts")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    monkeypatch.setenv("XLA_FLAGS", flags)
    run_hosts(command, 1, tmp_path / "devices")
    assert metrics_of(tmp_path / "hosts") == metrics_of(tmp_path / "devices")
    wanted, found = final_state(tmp_path / "devices"), final_state(tmp_path / "hosts")
    assert {name: x.tobytes() for name, x in wanted.items()} == {name: x.tobytes() for name, x in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_host_stops_all_at_the_same_step(command, alone, tmp_path, number):
    workdir = tmp_path / "run"
    with started(command, 2, workdir, "--config.train.steps=100000") as programs:
        wait_for(lambda: "step=2/" in programs[0].stdout, *programs)
        programs[1].process.send_signal(number)
        assert [program.returncode for program in programs] == [128 + number] * 2
    assert "the same command continues" in programs[0].stdout and not programs[1].stderr.count("error")
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert metrics_of(workdir)[-1]["step"] == saved - 1
    if saved < 30:
        run_hosts(command, 2, workdir)
        assert_same_run(alone, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_host_that_is_killed_in_a_save_is_named_and_the_run_goes_on(command, alone, tmp_path, killed):
    workdir, saves = tmp_path / "run", lambda: any((tmp_path / "run" / "checkpoints").glob("20.*tmp*"))
    with started(command, 2, workdir, timeout=60) as programs:
        wait_for(saves, *programs)
        programs[killed].process.kill()
        begun, other = time.monotonic(), programs[1 - killed]
        assert other.returncode == 1
    assert time.monotonic() - begun < 60 + 60  # the time-out, and what a busy machine takes to notice that it is over
    (told,) = [line for line in other.stderr.splitlines() if line.startswith("error: ")]
    assert told.startswith(f"error: host {killed} (") and f"; host {1 - killed} (" in told
    kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == [10], "the save was over before the kill"
    for count in (1, 2, 4):
        shutil.copytree(workdir, tmp_path / f"on_{count}")
        programs = run_hosts(command, count, tmp_path / f"on_{count}")
        assert [program.returncode for program in programs] == [0] * count, programs[0].stderr
        assert_same_run(alone, tmp_path / f"on_{count}")


@pytest.mark.slow
def test_a_host_that_would_train_something_else_is_named(command, tmp_path):
    each = {0: (), 1: ("--config.train.steps=31", "--config.optimizer.peak_lr=0.5")}
    programs = run_hosts(command, 2, tmp_path / "run", each=each.get)
    for program in programs:
        assert program.returncode == 2
        assert "would not do what host 0 does" in program.stderr
        assert "config.train.steps: 30 on host 0, 31 on host 1 (" in program.stderr
        assert "config.optimizer.peak_lr: 0.01 on host 0, 0.5 on host 1 (" in program.stderr
        assert program.stderr.count("error:") == 1 and "Traceback" not in program.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_fine_tuning_and_distillation_train_on_two_hosts_what_they_do_on_one(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    write_stage(tmp_path / "start")
    sums = "{'environment': 'running_sums', 'difficulties': (1,), 'count': 6}"
    short = ["--config.data.sequence_length=128", "--config.train.batch_size=4", "--config.optimizer.peak_lr=1e-2"]
    tuned = sums.replace("6", "12")  # of which some are held out, for samples.jsonl
    tuning = [f"--config.start_from={tmp_path / 'start'}", f"--config.sources=({tuned},)", "--config.train.steps=120"]
    tuning += ["--config.data.held_out_fraction=0.3"]
    teacher = tmp_path / "tuned_on_1"
    distilling = [f"--config.teachers=({{'model': '{teacher}', 'tasks': ({sums},)}},)", "--config.train.steps=10"]
    distilling += [f"--config.start_from={teacher}", "--config.sampling.context=128"]
    for program, config, name, flags, steps in (
        ("sft", "tiny_sft", "tuned", tuning, 10),
        ("distill", "tiny_shortest_correct", "distilled", distilling, 2),  # losses of 0.1, which rounding moves further
    ):
        command = [sys.executable, "-m", f"launch.{program}", f"--config={ROOT}/configs/align/{config}.py", *short]
        for count in (1, 2):
            programs = run_hosts(command, count, tmp_path / f"{name}_on_{count}", *flags)
            assert [program.returncode for program in programs] == [0] * count, programs[-1].stderr
        assert_same_run(tmp_path / f"{name}_on_1", tmp_path / f"{name}_on_2", steps)
        assert (tmp_path / f"{name}_on_2" / "samples.jsonl").exists() == (name == "tuned")
    answers = [next((tmp_path / f"distilled_on_{count}" / "data").glob("*.jsonl")) for count in (1, 2)]
    assert answers[0].read_bytes() == answers[1].read_bytes()


@pytest.mark.slow
def test_an_error_of_one_host_ends_all(command, tmp_path):
    """Of host 1, which has a home of its own; of host 0, while the others wait for the tokens that it makes."""
    homes = {host: {"HOME": str(tmp_path / f"home_{host}")} for host in (0, 1)}
    with started(command, 2, "~/run", env=homes.get, log=tmp_path) as programs:
        assert [program.returncode for program in programs] == [1, 2]
    told = "run lacks the files that host 0 wrote into its workdir; name a workdir that all hosts share"
    assert all(told in program.stderr and "Traceback" not in program.stderr for program in programs)
    assert "error: host 1 (" in programs[0].stderr
    with started(command, 2, tmp_path / "run", "--config.data.folder=s3://tokens") as programs:
        assert [program.returncode for program in programs] == [2, 1]
    assert all("s3://tokens: s3:// is not supported" in program.stderr for program in programs)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_host_that_never_comes_is_named(command, tmp_path):
    begun = time.monotonic()
    with started(command, 3, tmp_path / "run", timeout=30) as programs:
        programs[1].process.kill()
        assert [programs[host].returncode for host in (0, 2)] == [2, 2]
    assert time.monotonic() - begun < 30 + 120  # the time-out after the starts of three programs
    for host in (0, 2):
        assert "error: host 1 of 3 did not come to localhost:" in programs[host].stderr
        assert len(programs[host].stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
