"""Checkpoints in gs:// are whole or not there, and damage falls back to the one before, as on the disk."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax.checkpoint import manifest, orbax, steps
from ling_jax.checkpoint.workdir_sums import check_logs, check_texts, workdir_sums
from ling_jax.paths import append, files_below
from ling_jax.sums import DamagedFile
from tests.helpers.tiny import assert_trees_equal, random_params, tiny_config

CONFIG = tiny_config(num_layers=2, compute_dtype="float32")
PARAMS = jax.tree.map(jnp.asarray, random_params(CONFIG, dtype="float32"))


def save(folder, *numbers, **options):
    with orbax.open_manager(folder, keep=2) as manager:
        for number in numbers:
            orbax.save(manager, number, {"params": jax.tree.map(lambda x, n=number: x + n, PARAMS)}, CONFIG, **options)


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_saved_steps_are_kept_restored_and_compared(gs, capsys):
    save(gs, 1, 2, 3)
    assert steps.steps_in(gs) == [2, 3]  # the newest two
    files = files_below(gs / "3")
    assert set(manifest.read(gs / "3")["files"]) == {*files} - {"manifest.json", "commit_success.txt"}
    params, config = orbax.load_params(gs)
    assert config == CONFIG
    assert_trees_equal(params, jax.tree.map(lambda x: np.asarray(x + 3), PARAMS))
    damage(gs / "3" / "state" / "manifest.ocdbt")
    assert_trees_equal(orbax.load_params(gs)[0], jax.tree.map(lambda x: np.asarray(x + 2), PARAMS))
    told = capsys.readouterr().err
    assert f"WARNING: DAMAGED CHECKPOINT: {gs}/3/state/manifest.ocdbt has changed since it was written" in told
    assert "checkpoint 2 is read" in told
    assert steps.resume_step(gs) == 2 and (gs / "3.damaged" / "manifest.json").exists()
    assert steps.steps_in(gs) == [2]
    (gs / "2" / "state" / "_METADATA").unlink()
    with pytest.raises(orbax.DamagedCheckpoint, match="2/state/_METADATA cannot be read: it is not there"):
        orbax.load_params(gs)


def test_a_save_that_was_cut_off_does_not_count(gs):
    save(gs, 1)
    (gs / "2" / "state" / "_METADATA").write_text("begun")
    assert steps.newest_step(gs) == 1
    save(gs, 3)
    assert steps.steps_in(gs) == [1, 3]
    assert not (gs / "2").exists()


def test_logs_and_texts_of_a_workdir_are_compared(gs, capsys):
    (gs / "tokenizer" / "tokenizer.json").write_text("{}")
    append(gs / "metrics.jsonl", b'{"step": 0}\n')
    sums = workdir_sums(gs, ["metrics.jsonl", "samples.jsonl"])
    (gs / "checkpoints" / "1" / manifest.META_FILE).write_text(json.dumps({"run": sums}))
    append(gs / "metrics.jsonl", b'{"step": 1}\n')
    check_texts(gs, 1)
    check_logs(gs, 1)
    assert not capsys.readouterr().err
    (gs / "metrics.jsonl").write_bytes(b'{"step": 1}\n')
    check_logs(gs, 1)
    assert "WARNING: DAMAGED LOG" in capsys.readouterr().err
    (gs / "tokenizer" / "tokenizer.json").write_text("[]")
    with pytest.raises(DamagedFile, match="checkpoint 1 was saved with it: restore the file"):
        check_texts(gs, 1)
