"""Calls of the Linux kernel that Python's standard library lacks. They raise OSError."""

import ctypes
import functools
import os
import struct

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 22, 38, 36
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446  # on all architectures


@functools.cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Moves this process into new namespaces."""
    _checked("unshare", libc().unshare(flags))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    result = libc().mount(*map(os.fsencode, (source, target, kind)), ctypes.c_ulong(flags), os.fsencode(options))
    _checked(f"mount of {target}", result)


def unmount(target: str) -> None:
    """Takes a mount away, also where it is in use."""
    _checked(f"umount of {target}", libc().umount2(os.fsencode(target), MNT_DETACH))


def prctl(option: int, *arguments: int) -> None:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _checked("prctl", libc().prctl(option, *values))


def syscall(name: str, number: int, *arguments) -> int:
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(name, libc().syscall(ctypes.c_long(number), *values))


def install_filter(program: bytes) -> None:
    """Puts this process and its children under a filter of system calls. `no_new_privs` must be set."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header))
