"""What is seen of a host, so that two looks can be compared: files, processes, sockets, descriptors and settings."""

import contextlib
import hashlib
import os
import resource
import socket
import sysconfig
import time
from pathlib import Path

from benchmarks.sandbox_attacks import procfs

WATCHED = ("/", "/bin", "/dev", "/dev/shm", "/dev/mqueue", "/etc", "/home", "/mnt", "/proc", "/root", "/run", "/tmp")
WATCHED += ("/usr", "/usr/bin", "/usr/lib", "/var/tmp")


def observe(host) -> dict[str, object]:
    """The host's state; equal looks are equal values."""
    seen = {
        "files of the host": files(host.folder),
        "files left in folders of the host": left_behind(host),
        "processes of the attack": sorted(procfs.marked(host.token)),
        "the victim": process(host.victim.pid),
        "signals to the victim": signals(host),
        "the caller": process(os.getpid()),
        "descriptors of the caller": procfs.descriptors(os.getpid()),
        "sockets": sockets(host),
        "the terminal": terminal(host),
        "shared memory and queues": [Path(f"/proc/sysvipc/{kind}").read_text().count("\n") for kind in IPC],
        "mounts": Path("/proc/self/mountinfo").read_text().count("\n"),
        "the machine's name": os.uname().nodename,
        "the clock": abs(time.time() - time.monotonic() - host.clock) < 1,
        "temporary files": sorted(os.listdir(host.scratch)) if host.scratch else [],
    }
    servers = procfs.descendants(os.getpid()) - {host.victim.pid}
    seen["processes of the sandbox"] = len(servers)
    seen["descriptors of the sandbox"] = sum(map(procfs.descriptors, servers))
    seen["stopped processes of the sandbox"] = [pid for pid in servers if (procfs.stat(pid) or "Z")[0] == "T"]
    return seen


IPC = [name for name in ("shm", "msg", "sem") if os.path.exists(f"/proc/sysvipc/{name}")]


def settled(host, pause: float) -> dict[str, object]:
    """The state once two looks in a row are equal: a pool of boxes has then been filled."""
    seen, before = observe(host), None
    while seen != before:
        time.sleep(pause)
        seen, before = observe(host), seen
    return seen


def changes(host, baseline: dict[str, object], patience: float = 3.0) -> list[str]:
    """What differs from the baseline, in words. Waits until nothing does, as a pool is filled again in its own time."""
    end = time.monotonic() + patience
    while True:
        seen = observe(host)
        changed = [name for name, value in seen.items() if is_worse(baseline[name], value, name)]
        if not changed or time.monotonic() > end:
            return [f"{name}: {difference(baseline[name], seen[name])}" for name in changed]
        time.sleep(0.02)


def is_worse(before: object, after: object, name: str) -> bool:
    """Whether they differ. A sandbox may have fewer descriptors than before: it removes old boxes in its own time."""
    return after > before if name == "descriptors of the sandbox" else after != before


def difference(before: object, after: object) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        return str(
            {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}
        )
    return f"{before} -> {after}"


def files(folder: Path) -> dict[str, tuple]:
    """Mode, owner, links, size, time, attributes and a hash of each file."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        with contextlib.suppress(OSError):
            state = path.lstat()
            data = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
            modified = state.st_mtime_ns if path.is_file() else 0
            attributes = tuple(os.listxattr(path, follow_symlinks=False))
            kept = (oct(state.st_mode), state.st_uid, state.st_nlink, state.st_size, modified, attributes, data)
            found[path.name] = kept
    return found


def left_behind(host) -> list[str]:
    """Files with an attack's name in folders outside of the box."""
    folders = {*WATCHED, sysconfig.get_path("purelib"), os.path.dirname(os.__file__), os.getcwd(), str(Path.home())}
    found = []
    for folder in {os.path.realpath(each) for each in (*folders, host.folder)}:
        with contextlib.suppress(OSError):
            names = os.listdir(folder)
            found += [os.path.join(folder, name) for name in names if name.startswith(f"ling_attack_{host.token}")]
    return sorted(found)


def process(pid: int) -> dict[str, object]:
    """State (asleep and at work are one), priority, cores and limits of a process; empty where it is gone."""
    fields = procfs.stat(pid)
    if fields is None or fields[0] == "Z":
        return {}
    return {
        "stopped": fields[0] in "Tt",
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
        "scheduler": os.sched_getscheduler(pid),
        "cores": sorted(os.sched_getaffinity(pid)),
        "open files": resource.prlimit(pid, resource.RLIMIT_NOFILE),
        "tracer": next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "TracerPid" in line),
    }


def signals(host) -> int:
    """How many the victim has noted since it was started."""
    with contextlib.suppress(OSError):
        host.noted += os.read(host.victim.stdout.fileno(), 4096).count(b" ")
    return host.noted


def sockets(host) -> dict[str, int]:
    """How many came to each listener, and the names that attacks have taken."""
    for name, listener in host.listening.items():
        with contextlib.suppress(BlockingIOError):
            while True:
                if listener.type == socket.SOCK_STREAM:
                    listener.accept()[0].close()
                else:
                    listener.recv(4096)
                host.came[name] = host.came.get(name, 0) + 1
    taken = Path("/proc/net/unix").read_text().count(f"ling_attack_{host.token}")
    return {**host.came, "names taken": taken}


def terminal(host) -> bytes:
    """What was written to the terminal."""
    with contextlib.suppress(BlockingIOError):
        host.written += os.read(host.terminal, 4096)
    return host.written
