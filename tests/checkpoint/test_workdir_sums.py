"""Damage of a workdir's logs and tokenizer is noticed when its checkpoint is read."""

import dataclasses
import shutil

import pytest

from ling_jax import data, sums
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.folder import open_model
from ling_jax.checkpoint.workdir_sums import check_logs, workdir_sums
from ling_jax.sums import DamagedFile
from tests.train.test_step import CONFIG, new_state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir of one checkpoint, whose log has grown since."""
    workdir = tmp_path_factory.mktemp("run")
    data.save_tokenizer(data.train_bpe(["one two three"] * 5, 270), workdir / "tokenizer")
    (workdir / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    with orbax.open_manager(workdir / "checkpoints", keep=1) as manager:
        record = workdir_sums(workdir, ["metrics.jsonl", "events.jsonl"])
        orbax.save(manager, 2, new_state(), dataclasses.replace(CONFIG, vocab_size=270), run=record)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2}\n')
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_a_workdir_that_only_grew_is_read_without_a_word(workdir, capsys):
    assert open_model(workdir).step == 2
    check_logs(workdir, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["shorter", "changed", "missing"])
def test_a_log_that_lacks_steps_of_the_checkpoint_is_named(workdir, damage, capsys, monkeypatch):
    log = workdir / "metrics.jsonl"
    if damage == "missing":
        log.unlink()
    else:
        log.write_text({"shorter": '{"step": 0}\n', "changed": '{"step": 0}\n{"step": 3}\n{"step": 2}\n'}[damage])
    check_logs(workdir, 2)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("WARNING: DAMAGED LOG: ") and str(log) in warning and "checkpoint 2" in warning
    monkeypatch.setattr(sums.checks, "strict", True)
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl"):
        check_logs(workdir, 2)


def test_a_changed_tokenizer_is_named_and_read_only_if_asked(workdir, monkeypatch):
    path = workdir / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("\n", " ", 1))
    with pytest.raises(
        DamagedFile, match=r"tokenizer/tokenizer\.json .*checkpoint 2 was saved with it: restore the file"
    ):
        open_model(workdir)
    monkeypatch.setattr(sums.checks, "verify", False)
    assert open_model(workdir).step == 2
