"""Folders that several processes fill and verify together; threads play the processes."""

import threading

import pytest

from ling_jax.checkpoint.shared_folders import SUMS, check_shared, check_sums, new_shared_folder, write_sums
from ling_jax.files import read_object
from ling_jax.sums import DamagedFile
from tests.helpers.thread_peers import run_together


def fill(folder, peers):
    with new_shared_folder(folder, peers) as partial:
        assert not folder.exists()
        (partial / f"{peers.index}.bin").write_bytes(bytes([peers.index]) * 1000)
        if not peers.index:
            (partial / "texts").mkdir()
            (partial / "texts" / "README").write_text("nobody's own")
        peers.wait("written")
        write_sums(partial, [f"{peers.index}.bin"], peers)
    assert folder.exists()


def test_a_folder_has_its_name_when_all_have_filled_it_and_sums_of_all_files(tmp_path):
    run_together(3, lambda peers: fill(tmp_path / "model", peers))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    files = read_object(tmp_path / "model" / SUMS)["files"]
    assert list(files) == ["0.bin", "1.bin", "2.bin", "texts/README"]
    run_together(2, lambda peers: check_sums(tmp_path / "model", peers))


def test_damage_in_the_share_of_one_is_raised_in_all(tmp_path):
    run_together(3, lambda peers: fill(tmp_path / "model", peers))
    (tmp_path / "model" / "1.bin").write_bytes(b"x" * 1000)

    def found(peers):
        with pytest.raises(DamagedFile, match=r"1\.bin has changed since it was written"):
            check_sums(tmp_path / "model", peers)
        return True

    assert run_together(3, found) == [True] * 3


def test_a_folder_that_one_could_not_fill_does_not_appear(tmp_path):
    def fail(peers):
        with new_shared_folder(tmp_path / "model", peers):
            if peers.index:
                raise OSError("no space left")

    with pytest.raises((OSError, threading.BrokenBarrierError)):
        run_together(2, fail)
    assert not list(tmp_path.iterdir())


def test_hosts_with_folders_of_their_own_are_named(tmp_path):
    for name in ("of_0", "of_1", "shared"):
        (tmp_path / name).mkdir()

    def own(peers):
        with pytest.raises(ValueError, match=r"of_\d of host 1 lacks .shared.*name a workdir that all hosts share"):
            check_shared(tmp_path / f"of_{peers.index}", peers)

    run_together(2, own)
    run_together(2, lambda peers: check_shared(tmp_path / "shared", peers))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
