"""Python files that run in a process of their own, talk in lines over pipes, and can be killed."""

import contextlib
import subprocess
import sys
from pathlib import Path


def start_worker(file: Path, **options) -> subprocess.Popen:
    """Runs the file with pipes for standard input and output; `options` are `subprocess.Popen`'s."""
    # -P: files beside the worker's must not hide modules of the same name.
    command = [sys.executable, "-P", "-W", "ignore", str(file)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def end_worker(process: subprocess.Popen) -> None:
    """Kills the process, waits for its end and closes its pipes."""
    process.kill()
    process.wait()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
