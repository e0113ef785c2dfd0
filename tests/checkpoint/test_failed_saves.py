"""Saves in the background: one at a time, and a failed one is one error at the next look."""

import concurrent.futures.thread
import shutil
import threading
import time

import jax.numpy as jnp
import pytest

from ling_jax.checkpoint import manifest, orbax
from ling_jax.checkpoint.orbax import SaveFailed
from ling_jax.checkpoint.steps import steps_in
from tests.helpers.tiny import tiny_config


def state(step):
    return {"step": jnp.asarray(step), "params": {"embed": jnp.full((64, 64), step, jnp.float32)}}


def test_a_save_waits_for_the_one_before_it(tmp_path, monkeypatch, capsys):
    """On a slow disk; so memory never holds two copies of a state."""
    write, written = manifest.write, []

    def slow(folder, peers):
        time.sleep(0.5)
        write(folder, peers)
        written.append(time.monotonic())

    monkeypatch.setattr(manifest, "write", slow)
    with orbax.open_manager(tmp_path, keep=2) as manager:
        for step in (1, 2, 3):
            orbax.save(manager, step, state(step), tiny_config())
            assert len(written) >= step - 1  # when this one's arrays were copied
            assert steps_in(tmp_path)[-1:] == ([step - 1] if step > 1 else [])
    assert steps_in(tmp_path) == [2, 3]
    assert capsys.readouterr().out.count("waiting for the save before") == 2


def test_a_save_that_fails_in_the_background_is_one_error_at_the_next_look(tmp_path, monkeypatch, capfd):
    def full(folder, peers):
        raise OSError(28, "No space left on device", str(folder / manifest.FILE_NAME))

    with pytest.raises(SaveFailed) as error, orbax.open_manager(tmp_path, keep=2) as manager:
        orbax.save(manager, 1, state(1), tiny_config())
        manager.wait_until_finished()
        manager.check_saves()
        monkeypatch.setattr(manifest, "write", full)
        orbax.save(manager, 2, state(2), tiny_config())
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            manager.check_saves()
            time.sleep(0.01)
    told = str(error.value)
    assert told.startswith(f"a checkpoint could not be written into {tmp_path}: ") and len(told.splitlines()) == 1
    assert "No space left on device" in told and "the newest whole one is 1, and the same command continues" in told
    assert "Traceback" not in capfd.readouterr().err
    assert_nothing_holds_the_exit()
    monkeypatch.undo()
    with orbax.open_manager(tmp_path, keep=2) as manager:  # the same command
        manager.check_saves()
        orbax.save(manager, 2, state(2), tiny_config())
    assert steps_in(tmp_path) == [1, 2]


def test_a_folder_that_vanishes_is_one_error(tmp_path):
    folder = tmp_path / "checkpoints"
    with (
        pytest.raises(SaveFailed, match="no other one, and the same command starts again"),
        orbax.open_manager(folder, keep=2) as manager,
    ):
        orbax.save(manager, 1, state(1), tiny_config())
        manager.wait_until_finished()
        shutil.rmtree(folder)
        folder.touch()
        orbax.save(manager, 2, state(2), tiny_config())
        manager.wait_until_finished()
    assert_nothing_holds_the_exit()


def assert_nothing_holds_the_exit():
    """The interpreter joins all threads but daemons before it exits; Orbax's wait for minutes by themselves.

    Workers of pools do not count: the exit wakes them.
    """
    ends = [threading.main_thread(), *concurrent.futures.thread._threads_queues]
    deadline = time.monotonic() + 30
    while alive := [t.name for t in threading.enumerate() if not t.daemon and t not in ends]:
        assert time.monotonic() < deadline, f"{alive} wait for a save that has failed"
        time.sleep(0.01)
