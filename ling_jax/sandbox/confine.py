"""The process of a T2 box: it confines itself for good, then becomes the program of the box (init.py).

    python -I -S -c "..." PACKAGE CHANNEL CONFIG

CONFIG is JSON: {"user": its number or null, "read": paths, "write": folders, "devices": files, "filter": hex}.
Landlock opens these paths and no others, and scopes signals and abstract sockets. Each command enters a second domain
below, so that it cannot signal or trace this process, while this process can signal it: signal -1 from here reaches
the box alone.
"""

import ctypes
import importlib
import json
import os
import sys

from ling_jax.sandbox import init, kernel

READ = 0b1101  # execute, read files, read folders
FILE_READ, FILE_WRITE = 0b101, 0b110  # execute and read; write and read
# And write and remove files and folders, make folders, files, FIFOs and links, move, truncate: no sockets, no devices.
WRITE = READ | sum(1 << bit for bit in (1, 4, 5, 7, 8, 10, 12, 13, 14))
ALL, ALL_NET = (1 << 16) - 1, 0b11  # ABI 5; TCP bind and connect
SCOPES = 0b11  # abstract sockets, signals
MIN_ABI = 6
O_PATH = getattr(os, "O_PATH", 0)


def abi() -> int:
    """The version of Landlock's interface; 0 where the kernel has none."""
    try:
        return kernel.syscall("landlock", kernel.LANDLOCK_CREATE_RULESET, 0, 0, 1)
    except OSError:
        return 0


class RulesetAttributes(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def new_ruleset(fs: int, net: int) -> int:
    attributes = RulesetAttributes(fs, net, SCOPES)
    size = ctypes.sizeof(attributes)
    return kernel.syscall("landlock", kernel.LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), size, 0)


def allow(ruleset: int, path: str, access: int) -> None:
    descriptor = os.open(path, O_PATH | os.O_CLOEXEC)
    try:
        rule = PathRule(access, descriptor)
        kernel.syscall("landlock", kernel.LANDLOCK_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)


def enter(ruleset: int) -> None:
    kernel.syscall("landlock", kernel.LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def enter_command_domain() -> None:
    """The domain of one command, below that of the box."""
    enter(new_ruleset(0, 0))


def main() -> None:
    """Confines this process, then serves the box. What fails is on stderr, and the process ends."""
    channel, config = int(sys.argv[2]), json.loads(sys.argv[3])

    for name in ("marshal", "resource", "select", "stat"):  # their files may be out of reach below
        importlib.import_module(name)
    init.prctl(init.PR_SET_DUMPABLE, 0)
    ruleset = new_ruleset(ALL, ALL_NET)
    for paths, folder_access, file_access in (
        (config["read"], READ, FILE_READ),
        (config["write"], WRITE, 0),
        (config["devices"], 0, FILE_WRITE),
    ):
        for path in paths:
            allow(ruleset, path, folder_access if os.path.isdir(path) else file_access)
    if config["user"] is not None:
        os.setgroups([])
        os.setresgid(*3 * [config["user"]])
        os.setresuid(*3 * [config["user"]])
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    enter(ruleset)
    kernel.install_filter(bytes.fromhex(config["filter"]))
    sys.argv[1:] = [str(channel)]
    exec(init.BOOT, {"confine": enter_command_domain})
