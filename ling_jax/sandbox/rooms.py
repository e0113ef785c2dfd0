"""Folders and user numbers of boxes."""

import contextlib
import os
import stat
import tempfile

from ling_jax.sandbox.contract import SandboxError

NUM_IDS = 512  # of boxes at once; our choice
MAX_PID = 1 << 22  # of Linux
PREFIX = "ling-sandbox-"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Ids:
    """User numbers for boxes, as root: each server has a range of its own, far from those that systems give."""

    def __init__(self):
        with open("/proc/self/uid_map") as file:
            mapped = max(int(first) + int(count) for first, _, count in map(str.split, file))
        if mapped < 65_536:
            raise SandboxError(f"this user namespace has {mapped} user numbers; boxes need 65536 of them")
        wide = mapped > MAX_PID * NUM_IDS + (1 << 30)
        first = (1 << 30) + os.getpid() * NUM_IDS if wide else 8_000 + os.getpid() % 100 * NUM_IDS
        self.free = list(range(first, first + NUM_IDS))

    def take(self) -> int:
        if not self.free:
            raise SandboxError(f"{NUM_IDS} boxes are open at once; close some of them")
        return self.free.pop(0)

    def give_back(self, user: int) -> None:
        self.free.append(user)


def others_reach(path: str) -> bool:
    """Whether every user can read a file."""
    return bool(os.stat(path).st_mode & stat.S_IROTH) and others_pass(os.path.dirname(path))


def others_pass(folder: str) -> bool:
    """Whether every user can pass through a folder and those above it."""
    while os.stat(folder).st_mode & stat.S_IXOTH:
        if folder == "/":
            return True
        folder = os.path.dirname(folder)
    return False


def new_room() -> str:
    """A folder for the boxes of this server, which all users can pass through. Those of killed servers are removed."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        parent = os.path.realpath(parent)
        if os.path.isdir(parent) and others_pass(parent):
            sweep(parent)
            folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)
            os.chmod(folder, 0o711)
            return folder
    raise SandboxError("there is no folder for temporary files that all users may pass through: open /tmp")


def sweep(parent: str) -> None:
    """Removes the folders of this user's servers that were killed."""
    for name in os.listdir(parent):
        pid = name.removeprefix(PREFIX).partition("-")[0]
        path = os.path.join(parent, name)
        with contextlib.suppress(OSError):
            ours = name.startswith(PREFIX) and os.lstat(path).st_uid == os.geteuid()
            if ours and pid.isdigit() and not is_alive(int(pid)):
                remove_tree(path)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_tree(folder: str) -> None:
    """Removes a folder that foreign code has filled, when no process of it runs any more.

    It goes down and up again by one open folder at a time, so that no depth and no length of paths matters.
    """
    os.chmod(folder, 0o700)
    current = os.open(folder, FOLDER)
    names: list[str] = []  # from `folder` down to the current one
    left = [cleared(current)]  # for each of these, the folders in it
    while left:
        if left[-1]:
            names.append(left[-1].pop())
            os.chmod(names[-1], 0o700, dir_fd=current)
            current = moved(current, names[-1])
            left.append(cleared(current))
        else:
            left.pop()
            if names:
                current = moved(current, "..")
                os.rmdir(names.pop(), dir_fd=current)
    os.close(current)
    os.rmdir(folder)


def moved(current: int, name: str) -> int:
    """An open folder in place of another."""
    try:
        return os.open(name, FOLDER, dir_fd=current)
    finally:
        os.close(current)


def cleared(folder: int) -> list[str]:
    """Removes files and empty folders of an open folder; returns the names of the other ones."""
    left = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            try:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.name)
                    os.rmdir(entry.name, dir_fd=folder)
                    left.pop()
                else:
                    os.unlink(entry.name, dir_fd=folder)
            except OSError:
                continue  # not empty
    return left
