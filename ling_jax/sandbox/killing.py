"""Kills from outside a box, by lists that are read again until they are empty."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from ling_jax.sandbox import init

FORKS = threading.Lock()  # held until a new child is known, so that no other thread takes it for an orphan
HELPERS: set[int] = set()  # children that send signals as other users
PATIENCE_SECONDS = 10.0  # our choice


def kill_below(root: int, user: int | None = None) -> None:
    """Kills all that descends from a process, which itself goes on.

    user: whom they belong to. Signals are sent as this user then: a number that a process of the host has got
    meanwhile cannot be hit.

    All are stopped first: a stopped process keeps its place in the count that its user may have, so that a flood of
    forks comes to an end before the first one is killed.
    """
    until, stopped = time.monotonic() + PATIENCE_SECONDS, set()
    while new := set(init.descendants(root)) - stopped:
        send_as(user, new, signal.SIGSTOP)
        stopped |= new
        if time.monotonic() > until:
            break
    while left := init.descendants(root):
        send_as(user, left, signal.SIGKILL)
        if time.monotonic() > until:
            break
        time.sleep(0.001)


def kill_user(user: int) -> None:
    """Kills all processes of a box's own user, each time at one stroke, until none is seen. For root."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        send_as(user, [-1], signal.SIGKILL)
        if not living_of(user):
            return


def send_as(user: int | None, pids: Iterable[int], number: int) -> None:
    """Sends a signal to processes, as another user where one is given."""
    if user is None:
        for pid in pids:
            send(pid, number)
        return
    with FORKS:
        child = os.fork()
        if child:
            HELPERS.add(child)
    if not child:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            for pid in pids:
                send(pid, number)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    HELPERS.discard(child)


class Family:
    """The children that this process has started. Its other children are orphans of boxes."""

    def __init__(self):
        self.known = set()

    def start(self, command: list[str], **options) -> subprocess.Popen:
        with FORKS:
            process = subprocess.Popen(command, **options)
            self.known.add(process.pid)
        return process

    def forget(self, pid: int) -> None:
        """Kills and reaps all orphans behind a child that has ended."""
        until = time.monotonic() + PATIENCE_SECONDS
        self.known.discard(pid)
        while (strays := self.strays()) and time.monotonic() < until:
            for stray in strays:
                kill_below(stray)
                send(stray, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(stray, os.WNOHANG)

    def strays(self) -> set[int]:
        with FORKS:
            return children_of(os.getpid()) - self.known - HELPERS


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def stat_fields(pid: str) -> list[bytes]:
    """Fields of /proc/PID/stat behind the name: state, parent and so on; empty where the process has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()
    return []


def pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def children_of(parent: int) -> set[int]:
    """The children of a process, zombies too."""
    try:
        lists = [Path(f"/proc/{parent}/task/{task}/children") for task in os.listdir(f"/proc/{parent}/task")]
        return {int(pid) for file in lists for pid in file.read_bytes().split()}
    except OSError:  # an older kernel
        return {int(pid) for pid in pids() if (fields := stat_fields(pid)) and int(fields[1]) == parent}


def living_of(user: int) -> list[int]:
    """The processes of a user, zombies excepted, as far as they do not hide from /proc."""
    found = []
    for pid in pids():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == user and (fields := stat_fields(pid)) and fields[0] not in b"ZX":
                found.append(int(pid))
    return found


def tasks_of(user: int) -> int:
    """How many threads a user has."""
    return sum(int((stat_fields(str(pid)) or [b"0"] * 18)[17]) for pid in living_of(user))


def resident_bytes(pid: int) -> int:
    """Memory that a process has for itself: anonymous, and shared memory, which is counted once in each process."""
    pages = 0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith((b"RssAnon:", b"RssShmem:")):
                pages += int(line.split()[1]) * 1024
    return pages
