"""Sandboxes for tests, one for each tier of this machine, and what they must leave as it was."""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.sandbox_attacks import judge
from ling_jax.sandbox import Result

TIERS = ("T3", "T2")
OTHER_USER = 65534


reason_against = functools.cache(judge.reason_against)


def needs(tier: str) -> None:
    if why := reason_against(tier):
        pytest.skip(why)


def python(box, source: str, *arguments: str, **options) -> Result:
    """Runs Python source in a box."""
    return box.run(["python3", "-I", "-S", "-c", source, *arguments], **options)


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether a condition comes to hold in time."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def processes_with(text: str) -> list[int]:
    """The pids of all processes of this machine whose command line has the text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def as_other_user(source: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs source, in which ling_jax.sandbox can be imported, as a user without rights; skips where that cannot be."""
    if os.geteuid() or not os.path.exists("/usr/bin/python3"):
        pytest.skip("another user's process needs root and /usr/bin/python3")
    root = Path(__file__).parents[2]
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env = {"PYTHONPATH": ":".join((str(root), *packages)), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath}
    ids = {"user": OTHER_USER, "group": OTHER_USER, "extra_groups": []}
    command = ["/usr/bin/python3", "-c", source, *arguments]
    return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=120, **ids)
