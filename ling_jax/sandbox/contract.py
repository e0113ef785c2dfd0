"""What a caller says to a sandbox and gets from it."""

import dataclasses
from typing import NamedTuple

MIB = 1 << 20
# Folders of other task formats, which T3's boxes have as links: the work folder's other names, and folders in it.
NAMES_OF_WORK = ("app", "workspace", "testbed", "repo", "project", "code", "src")
IN_WORK = ("tests", "logs", "solution", "data", "input", "output")
HIDDEN = ".root"  # of the work folder, where those lie
LINKS = {**dict.fromkeys(NAMES_OF_WORK, "/work"), **{name: f"/work/{HIDDEN}/{name}" for name in IN_WORK}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a box; all are our choice."""

    seconds: float = 10.0  # of wall time, for each command
    memory_bytes: int = 512 * MIB  # of all processes together
    processes: int = 64  # at a time, threads included
    output_bytes: int = MIB  # of stdout, and as many of stderr, for each command; the rest is dropped
    disk_bytes: int = 64 * MIB  # of all files together
    files: int = 4096  # and folders


class Result(NamedTuple):
    """What came of a command. No process of it runs any more."""

    status: str  # "exited", "timeout", "memory", "disk" or "killed" (by a signal that no limit sent)
    code: int | None  # the exit code; None where it did not exit by itself
    stdout: bytes
    stderr: bytes
    truncated: bool  # whether output was dropped
    seconds: float  # of wall time


class SandboxError(OSError):
    """The sandbox itself failed: it says nothing about the code that was to run."""
