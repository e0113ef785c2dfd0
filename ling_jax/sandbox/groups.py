"""Control groups: the memory of a box bounded in total, where this user may make groups (v2, or v1).

In v2 processes are bounded here too. In v1 that would be a second move between groups, which takes the kernel 10 ms;
the limit of processes of a user does it.
"""

import contextlib
import os
import time
from pathlib import Path

from ling_jax.sandbox.contract import MIB, Limits

OWN_BYTES = 32 * MIB  # of the program in a box, beside what foreign code may take; our choice
PREFIX = "ling-sandbox-"


class Groups:
    """The folder of this server's groups in each hierarchy."""

    def __init__(self, folders: dict[str, Path]):
        self.folders = folders

    @classmethod
    def find(cls) -> "Groups | None":
        """Makes the folders; None where the memory of a group cannot be bounded by this user."""
        folders = {}
        for name, parents in parents_of_groups().items():
            for parent in parents:
                if made := new_folder(name, parent):
                    folders[name] = made
                    break
        groups = cls(folders)
        if "memory" in folders or "unified" in folders:
            return groups
        groups.end()
        return None

    def new(self, name: str, pid: int) -> "Group":
        """A group with this process, and with the children that it will have."""
        folders = {kind: parent / name for kind, parent in self.folders.items()}
        for folder in folders.values():
            folder.mkdir()
            (folder / "cgroup.procs").write_text(str(pid))
        return Group(folders)

    def end(self) -> None:
        for folder in self.folders.values():
            for child in folder.glob("*/"):
                remove(child)
            remove(folder)


class Group:
    """One box's group in each hierarchy."""

    def __init__(self, folders: dict[str, Path]):
        self.folders = folders

    def limit(self, limits: Limits) -> None:
        """Bounds memory, which files in the box's folder are part of, and processes."""
        memory = limits.memory_bytes + limits.disk_bytes + OWN_BYTES
        for kind, folder in self.folders.items():
            if kind == "memory":
                write(folder / "memory.limit_in_bytes", memory)
                write(folder / "memory.memsw.limit_in_bytes", memory, optional=True)
            if kind == "unified":
                write(folder / "memory.max", memory)
                write(folder / "memory.swap.max", 0, optional=True)
                write(folder / "pids.max", limits.processes + 1)  # and the program in the box

    def memory_kills(self) -> int:
        """How often the kernel has killed for memory here."""
        for kind, name in (("unified", "memory.events"), ("memory", "memory.oom_control")):
            if kind in self.folders:
                try:
                    lines = (self.folders[kind] / name).read_text().splitlines()
                except FileNotFoundError:  # the box has ended
                    return 0
                return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
        return 0

    def remove(self) -> None:
        for folder in self.folders.values():
            remove(folder)


def write(file: Path, value: int, optional: bool = False) -> None:
    try:
        file.write_text(str(value))
    except OSError:
        if not optional:
            raise


def remove(folder: Path, tries: int = 50) -> None:
    """Removes a group, which the kernel keeps for a moment behind its last process."""
    for _ in range(tries):
        try:
            return folder.rmdir()
        except FileNotFoundError:
            return None
        except OSError:
            time.sleep(0.001)
    return None


def new_folder(kind: str, parent: Path) -> Path | None:
    """A folder of this process's groups in which groups have the controls; None where it cannot be made."""
    sweep(parent)
    folder = parent / f"{PREFIX}{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        return None
    if kind != "unified":
        return folder
    if not os.access(parent / "cgroup.procs", os.W_OK):  # processes move through the group above both
        remove(folder)
        return None
    with contextlib.suppress(OSError):
        (folder / "cgroup.subtree_control").write_text("+memory +pids")
        if {"memory", "pids"} <= set((folder / "cgroup.subtree_control").read_text().split()):
            return folder
    remove(folder)
    return None


def sweep(parent: Path) -> None:
    """Removes the empty groups of servers that were killed."""
    for folder in parent.glob(f"{PREFIX}*/"):
        if not os.path.exists(f"/proc/{folder.name.removeprefix(PREFIX)}"):
            for child in folder.glob("*/"):
                remove(child, tries=1)
            remove(folder, tries=1)


def parents_of_groups() -> dict[str, list[Path]]:
    """For each hierarchy where its groups may be made: in this process's group or beside it."""
    paths, found = own_paths(), {}
    for kind, root, where in mounts():
        path = paths.get(kind)
        if path is None:
            continue
        inside = path.removeprefix(root).lstrip("/") if path.startswith(root) else ""
        own = Path(where) / inside
        found.setdefault(kind, [own, own.parent] if kind == "unified" and inside else [own])
    return found


def own_paths() -> dict[str, str]:
    """This process's group in each hierarchy."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            found |= {kind: path for kind in kinds.split(",") if kind == "memory"} if kinds else {"unified": path}
    return found


def mounts() -> list[tuple[str, str, str]]:
    """(kind, the group at its root, the folder) of the mounts of control groups."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            head, _, tail = line.partition(" - ")
            (_, _, _, root, where, *_), (kind, _, options) = head.split(), tail.split(" ", 2)
            if kind == "cgroup2":
                found.append(("unified", root, where))
            elif kind == "cgroup" and "memory" in options.split(","):
                found.append(("memory", root, where))
    return found
