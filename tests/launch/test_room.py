import subprocess
import sys

from tests.helpers.disks import small_disk
from tests.helpers.faults import ROOT
from tests.helpers.refusals import run_each


def test_too_little_disk_is_reported_before_the_demo_begins(tmp_path):
    with small_disk(tmp_path / "disk", 50_000_000) as disk:
        (done,) = run_each("launch.demo", [["--preset=full", f"--workdir={disk}/demo"]])
        assert done.returncode == 2 and done.stderr.startswith(f"error: {disk}/demo: "), done.stderr
        assert "350" in done.stderr and "of disk are missing for the files of the demo (PRESET=quick" in done.stderr
        assert not list(disk.iterdir()) and done.stderr.count("\n") == 1


def test_too_little_memory_is_reported_with_what_to_do():
    check = "from launch.room import check_demo; check_demo('quick', 'runs/demo')"
    limited = ["bash", "-c", 'ulimit -v 2000000; exec "$@"', "-", sys.executable, "-c", check]
    done = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "OSError: not enough memory: the demo takes about 2.50 GB, and " in done.stderr
    assert "are available; end other programs, raise the limit of the container or of `ulimit -v`" in done.stderr
