"""System calls by their numbers, and what attacks share."""

import ctypes
import errno
import mmap
import os
import platform
import time

from benchmarks.sandbox_attacks.attack import RefusedError

NUMBERS = {  # x86_64, aarch64
    "socket": (41, 198),
    "capget": (125, 90),
    "clone": (56, 220),
    "mq_open": (240, 180),
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "setxattr": (188, 5),
    "clock_settime": (227, 112),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "ioprio_set": (251, 30),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "kcmp": (312, 272),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "execveat": (322, 281),
    "userfaultfd": (323, 282),
    "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "pidfd_open": (434, 434),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "memfd_secret": (447, 447),
}
X86 = platform.machine() == "x86_64"
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


def call(name: str, *arguments: object) -> int:
    """Makes a system call. Raises OSError where it is refused."""
    return call_number(NUMBERS[name][0 if X86 else 1], *arguments)


def call_number(number: int, *arguments: object) -> int:
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{number}: {os.strerror(ctypes.get_errno())}")
    return result


def machine_code(code: bytes) -> int:
    """Runs bytes of machine code, as a function without arguments."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_long)(address)()


def only_on_x86() -> None:
    if not X86:
        raise RefusedError(errno.ENOSYS, "this machine is not x86_64")


def is_host_root() -> bool:
    """Whether we are uid 0 of the first user namespace: nothing that reaches others is then tried for real."""
    if os.geteuid():
        return False
    with open("/proc/self/uid_map", encoding="ascii") as file:
        first = file.readline().split()
    return first == ["0", "0", "4294967295"]


def in_child(function) -> str | None:
    """What a function in a forked process returns, as text; raises OSError as it does."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            got = function()
            os.write(writing, b"=" + str(got).encode() if got is not None else b"")
        except OSError as error:
            os.write(writing, f"{error.errno or 0}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    if said.startswith(b"="):
        return said[1:].decode()
    if said:
        raise OSError(int(said), os.strerror(int(said)))
    return None


def daemon(function) -> None:
    """Runs a function in a process of a session of its own whose parents are gone."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        function()
    finally:
        os._exit(0)


def linger(seconds: float = 20.0) -> None:
    """Stays alive, though not for ever: a process that escapes does no lasting harm."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)


def spin(seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
