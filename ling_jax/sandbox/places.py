"""What a tier keeps for a box, and what tiers share: environments, limits of processes, the ends of processes."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from typing import Protocol

from ling_jax.sandbox import killing
from ling_jax.sandbox.contract import MIB, Limits, SandboxError
from ling_jax.sandbox.groups import Group

QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
WAIT_SECONDS = 10.0  # our choice: for the end of killed processes, which may have memory to give back


@dataclasses.dataclass
class Place:
    """A box's process and what is behind it."""

    process: subprocess.Popen  # started by the tier
    pid: int  # of the program in the box
    work: str  # the work folder, as commands see it
    environment: dict[str, str]  # of commands
    errors: int  # a pipe with what the tier's own programs wrote to stderr
    folder: str = ""
    group: Group | None = None
    user: int | None = None  # of the box alone
    info: int = -1  # a pipe that names the pid, in T3
    polled: tuple[str, ...] = ()  # folders whose size nothing else bounds
    kills: int = 0  # for memory, by the poller
    disk_kills: int = 0

    def memory_kills(self) -> int:
        return self.kills + (self.group.memory_kills() if self.group else 0)


def is_polled(place: Place) -> bool:
    """Whether something of the box is bounded by looks alone. Nothing is in T0."""
    return bool(place.polled) or (place.info >= 0 and not place.group)


class Tier(Protocol):
    """A way to hold foreign code."""

    name: str
    signals: str  # "all" where signals of a box stay in it
    same_python: bool  # whether boxes run this interpreter's bytecode
    lacks: tuple[str, ...]
    advice: str  # what helps where boxes do not start

    def start(self, channel: int, command: list[str]) -> Place:
        """Starts the program of a box, which talks over the descriptor."""

    def settle(self, place: Place) -> None:
        """Finds the box's process and puts it into a control group. It may block, and runs in a thread."""

    def limit(self, place: Place, limits: Limits) -> dict[str, int]:
        """Bounds a box that has run nothing yet; returns the limits of each process."""

    def remove(self, place: Place) -> None:
        """Removes what is left of a box whose processes have ended."""

    def end(self) -> None:
        """Removes what boxes shared."""


def environment(work: str, tmp: str, python: str = sys.base_prefix) -> dict[str, str]:
    """The environment of commands."""
    path = f"{python}/bin:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": work, "TMPDIR": tmp, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


def process_limits(limits: Limits, *, grouped: bool) -> dict[str, int]:
    """Limits of each process; tighter ones of memory where no group bounds all processes together."""
    return {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": limits.disk_bytes,
        "RLIMIT_NOFILE": 256,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_AS": 4 * limits.memory_bytes + 1024 * MIB if grouped else limits.memory_bytes + 64 * MIB,
        "RLIMIT_MEMLOCK": MIB,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_SIGPENDING": 256,
    }


def error_pipe() -> tuple[int, int]:
    """A pipe for stderr of a starting box, which never blocks this process."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    return reading, writing


def reason(place: Place) -> str:
    """What a box that did not start has written to stderr."""
    with contextlib.suppress(BlockingIOError):
        return " ".join(os.read(place.errors, 4096).decode("utf-8", "replace").split())
    return ""


def kill(place: Place) -> None:
    """Ends the box's processes: in T3 all others die with the one that is killed."""
    if place.process.poll() is None:
        if place.user is None and place.info < 0:
            killing.kill_below(place.pid)
        killing.send(place.process.pid, signal.SIGKILL)
    if place.user is not None and place.info < 0:
        killing.kill_user(place.user)


async def has_ended(place: Place) -> None:
    """Waits for the end of the box's process. Raises SandboxError where the kernel does not end it."""
    until = time.monotonic() + WAIT_SECONDS
    while place.process.poll() is None or not reaped(place.pid):
        if time.monotonic() > until:
            raise SandboxError(f"process {place.pid} of a box does not end after SIGKILL")
        await asyncio.sleep(0.001)


def reaped(pid: int) -> bool:
    """Whether a process that this one may have inherited has ended; its zombie is reaped."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
