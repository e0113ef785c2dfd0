"""T2: Landlock, the filter and limits of processes, where namespaces are denied.

As root each box has a user number of its own, so that the files and processes of the host are protected by ownership
too. Processes are killed inside by signal -1 (confine.py says why it stays in the box), and from outside by lists,
until these are empty: by user number, or all that descends from the box and all that no box owns.
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

from ling_jax.sandbox import confine, killing, places, rooms
from ling_jax.sandbox import filter as syscall_filter
from ling_jax.sandbox.contract import Limits, SandboxError
from ling_jax.sandbox.groups import Groups

READ = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# The package's own __init__ would import the client, which takes longer than all else here.
START = """
import sys, types
for name in ("ling_jax", "ling_jax.sandbox"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[name].__path__ = [sys.argv[1]]
from ling_jax.sandbox.confine import main
main()
"""
LACKS = (
    "the work folder has a path of its own instead of /work, and there is no /proc",
    "names, sizes and times of the host's files can be seen, though not what is in them",
    "the number and size of all files together are polled every 0.1 s",
)


class Landlock:
    name, signals, same_python = "T2", "all", True
    advice = ""

    def __init__(self):
        if (found := confine.abi()) < confine.MIN_ABI:
            raise SandboxError(f"T2: Landlock's ABI is {found} here; {confine.MIN_ABI} or newer is needed (Linux 6.12)")
        self.ids = rooms.Ids() if os.geteuid() == 0 else None
        self.python, self.lacks = sys.base_prefix, LACKS
        if self.ids and not rooms.others_reach(os.path.realpath(sys.executable)):
            self.use_system_python()
        if not self.ids:
            self.lacks += ("chmod, chown and utime succeed without an effect",)
        self.filter = syscall_filter.program(own_user=not self.ids, landlock=True).hex()
        self.groups = Groups.find()
        if not self.groups:
            self.lacks += ("memory and processes of a box are polled every 0.1 s, since control groups are closed",)
        self.room, self.family = rooms.new_room(), killing.Family()

    def use_system_python(self) -> None:
        if not os.path.exists("/usr/bin/python3"):
            raise SandboxError(
                f"T2: as root, boxes run as users who cannot reach {os.path.realpath(sys.executable)}, and there is no "
                "/usr/bin/python3: open the folders above the interpreter (chmod o+x), or install that one"
            )
        self.python = "/usr"
        self.lacks += (f"python3 is the system's, since the users of boxes cannot reach {sys.base_prefix}",)

    def start(self, channel: int, command: list[str]) -> places.Place:
        folder = tempfile.mkdtemp(prefix="box-", dir=self.room)
        os.chmod(folder, 0o711)
        user = self.ids.take() if self.ids else None
        for name in ("work", "tmp"):
            os.mkdir(f"{folder}/{name}", 0o700)
            if user is not None:
                os.chown(f"{folder}/{name}", user, user)
        config = {
            "user": user,
            "read": [path for path in (*READ, *(f"/etc/{name}" for name in ETC), self.python) if os.path.exists(path)],
            "write": [f"{folder}/work", f"{folder}/tmp"],
            "devices": list(DEVICES),
            "filter": self.filter,
        }
        errors, stderr = places.error_pipe()
        command = [sys.executable, "-I", "-S", "-c", START, os.path.dirname(__file__), str(channel), json.dumps(config)]
        try:
            process = self.family.start(command, pass_fds=[channel], stderr=stderr, env={}, **places.QUIET)
        finally:
            os.close(stderr)
        environment = places.environment(f"{folder}/work", f"{folder}/tmp", self.python)
        place = places.Place(process, process.pid, f"{folder}/work", environment, errors, folder, user=user)
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
        return place

    def settle(self, place: places.Place) -> None:
        if self.groups:
            place.group = self.groups.new(os.path.basename(place.folder), place.pid)

    def limit(self, place: places.Place, limits: Limits) -> dict[str, int]:
        if place.group:
            place.group.limit(limits)
        place.polled = (f"{place.folder}/work", f"{place.folder}/tmp")
        rlimits = places.process_limits(limits, grouped=bool(place.group))
        if place.user is None:
            rlimits["RLIMIT_NPROC"] += killing.tasks_of(os.geteuid())
        return rlimits

    def remove(self, place: places.Place) -> None:
        self.family.forget(place.pid)
        os.close(place.errors)
        rooms.remove_tree(place.folder)
        if place.group:
            place.group.remove()
        if self.ids:
            self.ids.give_back(place.user)

    def end(self) -> None:
        rooms.remove_tree(self.room)
        if self.groups:
            self.groups.end()
