"""Partial files: swept when their process is gone, never while it lives; a full disk is named."""

import errno
import subprocess
import sys

import pytest

from ling_jax import partials
from ling_jax.files import new_folder, replacing
from tests.helpers.faults import ROOT

HOLD = """
import sys, time
from ling_jax.files import new_folder, replacing
with (replacing if sys.argv[1] == "file" else new_folder)(__import__("pathlib").Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_live_process_writes_stays_and_what_a_killed_one_left_goes(tmp_path, kind):
    target = tmp_path / "out[1]"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(target)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == "held\n"
        (theirs,) = tmp_path.glob(".*.partial")
        partials.sweep(tmp_path)
        with replacing(target) as file:
            file.write(b"x")
        assert theirs.exists() and target.read_bytes() == b"x"
        other.kill()
    target.unlink()
    with (replacing if kind == "file" else new_folder)(target):
        assert not theirs.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out[1]"]


def test_files_of_others_are_not_swept(tmp_path):
    names = [".out.partial", "out.0123456789abcdef0123456789abcdef.partial", f".out.{'g' * 32}.partial", ".partial"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f".link.{'0' * 32}.partial").symlink_to(tmp_path / names[0])
    partials.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(names) + 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("240 requested and 0 written"),
    ],
)
def test_a_full_disk_names_the_outermost_path(tmp_path, error):
    said = rf"^{tmp_path}/out cannot be written: .*; free space"
    with (
        pytest.raises(partials.FullDisk, match=said) as raised,
        new_folder(tmp_path / "out") as folder,
        replacing(folder / "file"),
    ):
        raise error
    assert "\n" not in str(raised.value) and not any(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), partials.write_errors(tmp_path):
        (tmp_path / "absent").read_bytes()
