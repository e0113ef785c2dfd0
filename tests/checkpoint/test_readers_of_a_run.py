"""Models are read from the workdir of a run that saves at every step and keeps one checkpoint."""

import contextlib

import pytest

from ling_jax.checkpoint.folder import load_model
from ling_jax.checkpoint.steps import steps_in
from tests.helpers.fork_server import ROOT, Program
from tests.helpers.small_run import write_corpus


@contextlib.contextmanager
def running(folder):
    """The workdir of a program that trains until the block ends."""
    write_corpus(folder / "corpus")
    sources = f"({{'kind': 'text', 'path': '{folder / 'corpus'}'}},)"
    flags = [
        f"--config={ROOT / 'tests/helpers/small_run.py'}",
        f"--config.data.sources={sources}",
        "--config.train.steps=9999",
    ]
    flags += ["--config.train.save_every=1", "--config.train.keep=1", "--config.model.num_layers=1"]
    flags += ["--config.model.mtp_depth=0", f"--workdir={folder / 'run'}"]
    program = Program("launch.pretrain", {})
    pid = program.start(flags, folder / "log")
    try:
        while len(steps_in(folder / "run" / "checkpoints")) < 1:
            assert not program.has_ended(), (folder / "log").read_text()
        yield folder / "run"
        assert not program.has_ended(), (folder / "log").read_text()
    finally:
        program.kill(pid)
        program.close()


@pytest.mark.slow
def test_a_reader_gets_the_newest_model_while_the_run_deletes_older_ones(tmp_path, capsys):
    steps = []
    with running(tmp_path) as workdir:
        while len(steps) < 50:
            steps.append(load_model(workdir).step)
    assert steps == sorted(steps) and len(set(steps)) > 10, steps
    assert capsys.readouterr().err == ""
