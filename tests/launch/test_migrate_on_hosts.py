"""Several processes run one migration: they leave what one leaves, and what one of them cannot do, none does."""

import os
import shutil
import signal
import sys

import pytest

from ling_jax.checkpoint import orbax
from ling_jax.migrate.run import read_report
from tests.helpers.damage import files_below
from tests.helpers.faults import ROOT, final_state, metrics_of
from tests.helpers.small_migration import write_source
from tests.helpers.small_run import write_corpus
from tests.launch.test_many_hosts import run_hosts, started, wait_for

pytestmark = pytest.mark.slow

STAGES = ("0_linear_warmup", "1_partial", "2_mla_warmup", "3_mid_1", "4_merge")
TWO_DEVICES = "--xla_force_host_platform_device_count=2"
# Conversions alone, to all forms.
CONVERSIONS = "--config.stages=({'name': 'wide', 'form': 'linear'}, {'name': 'narrow', 'form': 'mla'})"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The program on a small source and corpus, without its workdir and hosts."""
    folder = tmp_path_factory.mktemp("migration")
    write_source(folder / "source")
    write_corpus(folder / "corpus", 40)
    config = [f"--config={ROOT / 'tests/helpers/small_migration.py'}", f"--config.source={folder / 'source'}"]
    config.append(f"--config.data.sources=({{'kind': 'text', 'path': '{folder / 'corpus'}'}},)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        yield [sys.executable, "-m", "launch.migrate", *config]


def on_two_devices(host):
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {TWO_DEVICES}"}


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The workdir of one process with two devices that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    (done,) = run_hosts(command, 1, workdir, env=on_two_devices)
    assert done.returncode == 0, done.stderr
    return workdir


def assert_same_migration(wanted, found):
    """The same bits of all conversions, checkpoints, metrics and reports, but for seconds."""
    for stage in STAGES:
        reports = [read_report(workdir / stage / "report.json") for workdir in (wanted, found)]
        for report in reports:
            del report["seconds"]
        assert reports[0] == reports[1]
        assert files_below(wanted / stage / "converted") == files_below(found / stage / "converted")
        if (wanted / stage / "metrics.jsonl").exists():
            assert metrics_of(wanted / stage) == metrics_of(found / stage)
        if (wanted / stage / "checkpoints").exists():
            states = [final_state(workdir / stage) for workdir in (wanted, found)]
            assert states[0].keys() == states[1].keys()
            assert all(value.tobytes() == states[1][name].tobytes() for name, value in states[0].items())
    assert not list(found.rglob("*.partial")) and not list(found.rglob(".layer_*"))


def test_two_hosts_leave_what_two_devices_leave(command, alone, tmp_path):
    first, second = run_hosts(command, 2, tmp_path / "run")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert_same_migration(alone, tmp_path / "run")
    assert first.stdout.count("layer=0 from=gqa to=lightning") == 1
    assert first.stdout.count("layer=1 from=gqa to=mla") == 1 and "layer=" not in second.stdout
    again = run_hosts(command, 2, tmp_path / "run")
    assert [program.returncode for program in again] == [0, 0] and again[0].stdout.count(": done") == 5
    (seen,) = run_hosts(command, 1, tmp_path / "run", env=on_two_devices)
    assert seen.returncode == 0 and seen.stdout.count(": done") == 5


@pytest.mark.parametrize(
    ("killed", "moment"),
    [(1, "1_partial/.converted.*.partial"), (1, "3_mid_1/checkpoints/2"), (0, "2_mla_warmup/.converted.*.partial")],
    ids=["in a conversion", "in a training", "host 0 in a conversion"],
)
def test_a_host_that_is_killed_is_named_and_one_process_goes_on(command, alone, tmp_path, killed, moment):
    workdir = tmp_path / "run"
    with started(command, 2, workdir, timeout=20) as programs:
        wait_for(lambda: any(workdir.glob(moment)), *programs)
        programs[killed].process.kill()
        other = programs[1 - killed]
        assert other.returncode == 1
    (told,) = [line for line in other.stderr.splitlines() if line.startswith("error: ")]
    assert told.startswith(f"error: host {killed} (") and f"; host {1 - killed} (" in told
    stage = moment.split("/")[0]
    assert not (workdir / stage / "report.json").exists(), "the stage was over before the kill"
    shutil.copytree(workdir, tmp_path / "on_2")
    (done,) = run_hosts(command, 1, workdir, env=on_two_devices)
    assert done.returncode == 0, done.stderr
    assert_same_migration(alone, workdir)
    programs = run_hosts(command, 2, tmp_path / "on_2")
    assert [program.returncode for program in programs] == [0, 0], programs[0].stderr
    assert_same_migration(alone, tmp_path / "on_2")


def test_a_signal_to_one_host_ends_a_conversion_on_all(command, tmp_path):
    workdir = tmp_path / "run"
    with started(command, 2, workdir, CONVERSIONS) as programs:
        wait_for(lambda: any(workdir.glob("0_wide/.converted.*.partial")), *programs)
        programs[1].process.send_signal(signal.SIGTERM)
        assert [program.returncode for program in programs] == [128 + signal.SIGTERM] * 2
    assert not (workdir / "1_narrow").exists(), "the conversion was over before the signal"


def test_more_hosts_than_layers_write_the_same_bytes(command, tmp_path):
    for count in (1, 3):
        workdir = tmp_path / f"on_{count}"
        programs = run_hosts(command, count, workdir, CONVERSIONS, "--config.train.batch_size=3")
        assert [program.returncode for program in programs] == [0] * count, [p.stderr for p in programs]
    for stage in ("0_wide", "1_narrow"):
        wanted, found = (files_below(tmp_path / f"on_{count}" / stage / "converted") for count in (1, 3))
        assert len(wanted) >= 8 and wanted == found


def test_an_error_in_a_layer_of_one_host_ends_all_with_that_error(command, tmp_path):
    params, model = orbax.load_params(source_of(command) / "checkpoints")
    segment = params["segments"]["0"]["0_gqa_dense"]
    segment["mixer_norm"] = segment["mixer_norm"].at[1].set(float("nan"))
    shutil.copytree(source_of(command) / "tokenizer", tmp_path / "source" / "tokenizer")
    orbax.save_params(tmp_path / "source" / "checkpoints", params, model)
    flags = ["--config.stages=({'name': 'narrow', 'form': 'mla'},)", f"--config.source={tmp_path / 'source'}"]
    first, second = run_hosts(command, 2, tmp_path / "run", *flags)
    assert (first.returncode, second.returncode) == (1, 1)
    for program in (first, second):
        assert "layer 1: calibration: the mean square of q of head 0 is nan" in program.stderr
        assert "Traceback" not in program.stderr
    assert "error: host 1 (" in first.stderr


def source_of(command):
    (flag,) = [flag for flag in command if flag.startswith("--config.source=")]
    return type(ROOT)(flag.partition("=")[2])


def test_hosts_that_would_not_do_the_same_are_refused(command, tmp_path):
    homes = {host: {"HOME": str(tmp_path / f"home_{host}")} for host in (0, 1)}
    programs = run_hosts(command, 2, "~/run", CONVERSIONS, env=homes.get, log=tmp_path)
    lacks = "run of host 1 lacks .shared."
    for program in programs:
        assert program.returncode in (1, 2) and lacks in program.stderr
        assert "name a workdir that all hosts share" in program.stderr and "Traceback" not in program.stderr
    for host, seed in enumerate((1, 2)):
        write_source(tmp_path / f"home_{host}" / "source", init_std=0.1 * seed)
    flags = [CONVERSIONS, "--config.source=~/source"]
    programs = run_hosts(command, 2, tmp_path / "run", *flags, env=homes.get)
    for program in programs:
        assert program.returncode in (1, 2) and "hosts do not agree" in program.stderr
        assert "source.manifest.json: " in program.stderr and "on host 0" in program.stderr
    programs = run_hosts(command, 2, tmp_path / "run", "--config.mesh.expert=2", "--config.mesh.data=1")
    for program in programs:
        assert program.returncode in (1, 2)
        assert "(linear_warmup): parameter embed: axis 'vocab' of size 263 cannot be split 2 ways" in program.stderr
        assert "on 2 devices all stages could use --config.mesh.data=2 --config.mesh.expert=1" in program.stderr
