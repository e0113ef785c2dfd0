"""Programs that tests run in a process of their own, and the compiler that some need."""

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers.faults import ROOT

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def output_of(module: str, *arguments: str) -> str:
    """What `python -m module` prints; it has to end well."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout
