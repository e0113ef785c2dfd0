"""Processes of the machine as /proc shows them."""

import contextlib
import os
from pathlib import Path

LOOKS = 3


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name (the state first); None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return None


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def newest_first() -> list[int]:
    """All processes but this one, by the time of their start; numbers begin again at 1 after the last."""
    last, most = int(Path("/proc/loadavg").read_text().split()[-1]), int(Path("/proc/sys/kernel/pid_max").read_text())
    return sorted(set(pids()) - {os.getpid()}, key=lambda pid: (last - pid) % most)


def descendants(pid: int) -> set[int]:
    """Children of a process, their children and so on."""
    children: dict[int, list[int]] = {}
    for each in pids():
        if fields := stat(each):
            children.setdefault(int(fields[1]), []).append(each)
    found, new = set(), [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, ())]
        found.update(new)
    return found


def marked(token: str) -> set[int]:
    """Processes with this text in their command line or environment, ended ones that nobody has waited for excepted.

    Looks several times, as some hop from pid to pid, and at the newest first, as these do not live for long.
    """
    found: set[int] = set()
    for _ in range(LOOKS):
        for pid in newest_first():
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
                    if token.encode() in file.read():
                        found.add(pid)
        if found:
            break
    return found


def descriptors(pid: int) -> int:
    """How many are open; 0 where that may not be seen."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
