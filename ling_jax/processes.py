"""Python files that run as processes of their own, exchange lines over pipes, and can be killed."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any


def start_worker(file: Path, **options: Any) -> subprocess.Popen:
    """Runs the file with pipes for stdin and stdout; `options` are those of `subprocess.Popen`."""
    # -P: files in the worker's folder must not hide modules of the same name.
    command = [sys.executable, "-P", "-W", "ignore", str(file)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def end_worker(process: subprocess.Popen) -> None:
    """Kills the process, waits for its end and closes its pipes."""
    process.kill()
    process.wait()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
