"""Damage of a checkpoint is named, and an older whole one is used; nothing is deleted on the way."""

import contextlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax import sums
from ling_jax.checkpoint import manifest, orbax, steps
from ling_jax.checkpoint.layers import OrbaxReader
from ling_jax.checkpoint.manifest import DamagedCheckpoint
from tests.helpers.damage import DAMAGES, damage, files_below
from tests.train.test_step import CONFIG, new_state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of the checkpoints 1 and 2, whose states differ."""
    folder, state = tmp_path_factory.mktemp("run") / "checkpoints", new_state()
    with orbax.open_manager(folder, keep=2) as manager:
        for step in (1, 2):
            orbax.save(manager, step, state.replace(step=state.step + step), CONFIG)
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


@contextlib.contextmanager
def checks(**values):
    before = vars(sums.checks).copy()
    vars(sums.checks).update(values)
    try:
        yield
    finally:
        vars(sums.checks).update(before)


def flip(path: Path, bit: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def largest(folder: Path) -> Path:
    """The file that holds the arrays."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_the_manifest_names_every_file_and_what_made_them(saved):
    content = json.loads((saved / "2" / "manifest.json").read_text())
    names = {path.relative_to(saved / "2").as_posix() for path in (saved / "2").rglob("*") if path.is_file()}
    assert content["files"].keys() == names - {"manifest.json"}
    assert content["code"] == manifest.code_version()
    assert content["meta"]["model"]["hidden_size"] == CONFIG.hidden_size
    assert manifest.verify(saved / "2") and not list(saved.rglob("*.partial"))


def test_a_flipped_bit_is_named_and_the_older_checkpoint_is_read(run, capsys):
    flip(largest(run / "2"))
    _, step = orbax.load_config(run)
    warning = capsys.readouterr().err
    assert step == 1 and "WARNING: DAMAGED CHECKPOINT" in warning and largest(run / "2").name in warning
    assert "checkpoint 1 is read" in warning and len(warning.splitlines()) == 1


def test_layers_of_a_damaged_checkpoint_are_not_read(run):
    flip(largest(run / "2"))
    with pytest.raises(DamagedCheckpoint, match="has changed since it was written"):
        OrbaxReader(run, step=2)


def test_strict_refuses_although_an_older_one_is_whole(run):
    flip(largest(run / "2"))
    with checks(strict=True), pytest.raises(DamagedCheckpoint, match="without --strict an older one is used"):
        orbax.load_params(run)


def test_no_verify_reads_what_is_there(run):
    (run / "2" / "meta" / "commit_success.txt").unlink()
    with checks(verify=False):
        assert orbax.load_config(run)[1] == 2
    assert orbax.load_config(run)[1] == 1


def test_no_whole_checkpoint_is_an_error_that_names_the_newest(run):
    for step in (1, 2):
        largest(run / str(step)).unlink()
    with pytest.raises(
        DamagedCheckpoint, match=r"checkpoints/2/.* cannot be read: No such file .*no older one is whole"
    ):
        orbax.load_params(run)


def test_a_run_sets_damaged_checkpoints_aside_and_saves_their_steps_again(run):
    flip(largest(run / "2"))
    damaged = files_below(run / "2")
    assert steps.resume_step(run) == 1
    state = new_state()
    with orbax.open_manager(run, keep=1) as manager:
        orbax.save(manager, 2, state, CONFIG)
    assert steps.resume_step(run) == 2
    assert files_below(run / "2.damaged") == damaged  # retention counts it as nothing
    assert not (run / "1").exists()


def test_the_last_whole_checkpoint_survives_a_save_that_fails(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    with contextlib.suppress(Exception), orbax.open_manager(run, keep=1) as manager:
        orbax.save(manager, 3, new_state(), CONFIG)
        manager.wait_until_finished()
    assert steps.steps_in(run) == [1, 2] and steps.resume_step(run) == 2


def test_a_checkpoint_of_an_earlier_version_is_read_with_a_line(run, capsys):
    meta = run / "2" / "meta" / "metadata"
    meta.write_text(json.dumps({"model": json.loads(meta.read_text())["model"]}))
    (run / "2" / "manifest.json").unlink()
    assert orbax.load_config(run)[1] == 2
    assert "has no manifest.json: its bytes are not verified" in capsys.readouterr().err


def test_a_manifest_of_another_format_is_named(run, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 2)
    with pytest.raises(ValueError, match=r"manifest\.json is of format 1; this version of ling_jax reads format 2"):
        orbax.load_config(run)


@pytest.mark.parametrize(
    "files",
    [None, [1], {"state/_METADATA": None}, {"../x": {"bytes": 1, "crc32c": ""}}, {"a": {"bytes": "1"}}],
    ids=str,
)
def test_a_manifest_that_says_nothing_of_files_is_damage(run, files, capsys):
    """Even where somebody has made its sum anew."""
    content = {"format": manifest.FORMAT, "files": files}
    (run / "2" / "manifest.json").write_bytes(sums.sealed(content))
    assert steps.choose_step(run) == 1
    assert "checkpoints/2: the sums of its files are " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["003", "²", "٣", "3 ", "3.damaged", "-3"])
def test_only_names_of_steps_are_steps(run, name):
    (run / "2").rename(run / name)
    assert steps.steps_in(run) == [1] and steps.choose_step(run) == 1


def test_a_process_reads_a_checkpoint_once_to_compare_it_unless_it_was_touched(run, monkeypatch):
    compared, compare = [], manifest.compare

    def counted(folder, files):
        compared.append(folder)
        compare(folder, files)

    monkeypatch.setattr(manifest, "compare", counted)
    orbax.load_config(run)
    OrbaxReader(run)
    assert steps.resume_step(run) == 2 and compared == [run / "2"]
    os.utime(largest(run / "2"))
    orbax.load_config(run)
    assert len(compared) == 2
    flip(largest(run / "2"))
    assert steps.resume_step(run) == 1


def test_a_manifest_is_written_anew_for_what_was_added(run):
    (run / "2" / "state" / "more").write_bytes(b"parts")
    (run / "2" / ".manifest.json.1a.partial").write_bytes(b"of a process that was killed")
    flip(largest(run / "2"))
    manifest.write(run / "2")
    assert not list(run.rglob("*.partial"))
    assert manifest.verify(run / "2") and "state/more" in manifest.read(run / "2")["files"]


@settings(max_examples=20)
@given(kind=st.sampled_from(sorted(DAMAGES)), seed=st.integers(0, 2**32 - 1))
def test_no_damage_of_any_file_is_silent(saved, kind, seed):
    with tempfile.TemporaryDirectory() as folder:
        run = shutil.copytree(saved, Path(folder) / "checkpoints")
        changed = damage(kind, run / "2", random.Random(seed))
        with pytest.raises(DamagedCheckpoint) as raised:
            steps.choose_step(run, 2)
        assert any(path.name in str(raised.value) for path in changed) and len(str(raised.value).splitlines()) == 1
        assert steps.choose_step(run) == 1
