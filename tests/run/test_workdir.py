"""The lock of a workdir: one run at a time, and no error of its own at the end of a run."""

import errno
import fcntl
import shutil

import pytest
from etils import epath

from ling_jax.run.workdir import LOCK, lock, unlock


def test_a_workdir_is_one_process_s_until_it_is_given_back(tmp_path):
    workdir = epath.Path(tmp_path / "run")
    held = lock(workdir)
    with pytest.raises(ValueError, match="is in use by another process"):
        lock(workdir)
    unlock(workdir, held)
    assert not workdir.exists()  # it got nothing
    unlock(workdir, lock(workdir))


def test_a_workdir_that_was_removed_is_given_back_without_an_error(tmp_path):
    workdir = epath.Path(tmp_path / "run")
    held = lock(workdir)
    shutil.rmtree(workdir)
    unlock(workdir, held)
    assert held.closed and not workdir.exists()


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    """As NFS without its lock service, and some that clouds mount."""

    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    held = lock(epath.Path(tmp_path))
    assert (tmp_path / LOCK).exists() and held is not None
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {tmp_path}: its file system has no locks (No locks available)")
    assert len(told.splitlines()) == 1
    held.close()
