"""What the kernel does not bound for a tier is measured while a command runs, and its processes are killed above it."""

import asyncio
import contextlib
import os
import stat

from ling_jax.sandbox import init, killing
from ling_jax.sandbox.contract import Limits
from ling_jax.sandbox.places import Place

SECONDS = 0.1  # between two looks; our choice
EXITING = 4  # PF_EXITING, among the flags of a process


async def watch(place: Place, limits: Limits) -> None:
    """Looks until it is cancelled; kills are counted in the place."""
    hid = False
    while True:
        await asyncio.sleep(SECONDS)
        below = init.descendants(place.pid)
        if not place.group and sum(map(killing.resident_bytes, below)) > limits.memory_bytes:
            place.kills += 1
            killing.kill_below(place.pid, place.user)
        if not place.polled:
            continue
        open_files = list(map(nameless_bytes, below))
        hides = None in open_files
        if (hides and hid) or over_disk(place.polled, sum(filter(None, open_files)), limits):
            place.disk_kills += 1
            killing.kill_below(place.pid, place.user)
        hid = hides  # a command may hide for a moment, before it has become its program


def over_disk(folders: tuple[str, ...], taken: int, limits: Limits) -> bool:
    """Whether files in folders, with `taken` bytes elsewhere, are more than a box may have."""
    count, ahead = 0, list(folders)
    while ahead:
        for entry in entries_of(ahead.pop()):
            count += 1
            with contextlib.suppress(OSError):
                taken += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    ahead.append(entry.path)
            if count > limits.files or taken > limits.disk_bytes:
                return True
    return taken > limits.disk_bytes


def entries_of(folder: str) -> list[os.DirEntry]:
    """The entries of a folder, which foreign code may have closed to its owner or replaced meanwhile."""
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        name = f"/proc/self/fd/{descriptor}"
        if os.fstat(descriptor).st_mode & 0o700 != 0o700 and os.fstat(descriptor).st_uid == os.geteuid():
            os.chmod(name, 0o700)
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
    finally:
        os.close(descriptor)


def nameless_bytes(pid: int) -> int | None:
    """The size of deleted files that a process has open; None where it hides them."""
    folder, taken = f"/proc/{pid}/fd", 0
    try:
        names = os.listdir(folder)
    except PermissionError:
        fields = killing.stat_fields(str(pid))
        return None if fields and not int(fields[6]) & EXITING else 0
    except OSError:
        return 0
    for name in names:
        with contextlib.suppress(OSError):
            found = os.stat(f"{folder}/{name}")
            taken += found.st_blocks * 512 if stat.S_ISREG(found.st_mode) and not found.st_nlink else 0
    return taken
