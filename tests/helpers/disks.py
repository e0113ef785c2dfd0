"""Disks that are small, full or closed: real file systems, which only root may mount."""

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Root passes over permissions unless it gives up this capability.
WITHOUT_OVERRIDE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if shutil.which("setpriv") else []


@contextlib.contextmanager
def small_disk(folder: Path, nbytes: int, *options: str) -> Iterator[Path]:
    """A file system of so many bytes in memory at `folder`; the test is skipped where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    how = ",".join([f"size={nbytes}", *options])
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave: int) -> None:
    """Leaves so many bytes of the disk."""
    count = shutil.disk_usage(disk).free - leave
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
        file.write(b"\0" * max(0, count))


def fill_when(disk: Path, begun: str, leave: int) -> threading.Thread:
    """`fill` in the moment when a path of this pattern is there."""

    def wait() -> None:
        end = time.monotonic() + 120
        while not any(disk.glob(begun)) and time.monotonic() < end:
            time.sleep(0.002)
        fill(disk, leave)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
