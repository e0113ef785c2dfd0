"""The filter of system calls that foreign code runs under, as a BPF program for seccomp.

A list of what is allowed: programs see ENOSYS for all other calls, and EPERM for those that they may know how to
miss. A filter sees numbers alone, never the memory that a pointer leads to. Calls of 32-bit programs and of x32 end
the process.
"""

import errno
import platform
import struct
from typing import NamedTuple

from ling_jax.sandbox.syscalls import AARCH64, X86_64

ALLOWED = (
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "open",
    "openat", "openat2", "creat", "close", "close_range", "lseek", "stat", "fstat", "lstat", "newfstatat", "statx",
    "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getdents", "getdents64", "getcwd", "chdir",
    "fchdir", "mkdir", "mkdirat", "rmdir", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat",
    "symlink", "symlinkat", "mknod", "mknodat", "umask", "truncate", "ftruncate", "fallocate", "fsync", "fdatasync",
    "statfs", "fstatfs", "flock", "dup", "dup2", "dup3", "pipe", "pipe2", "select", "pselect6", "poll", "ppoll",
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd", "eventfd2",
    "signalfd", "signalfd4", "timerfd_create", "timerfd_settime", "timerfd_gettime", "sendfile", "splice", "tee",
    "vmsplice", "copy_file_range", "fadvise64", "readahead", "getxattr", "lgetxattr", "fgetxattr", "listxattr",
    "llistxattr", "flistxattr", "mmap", "mprotect", "munmap", "mremap", "brk", "madvise", "mincore", "msync", "mlock",
    "munlock", "mlock2", "membarrier", "fork", "vfork", "execve", "exit", "exit_group", "wait4", "waitid",
    "set_tid_address", "set_robust_list", "get_robust_list", "rseq", "futex", "futex_waitv", "arch_prctl", "prctl",
    "getpid", "gettid", "getppid", "getpgrp", "getpgid", "getsid", "setpgid", "setsid", "getuid", "geteuid", "getgid",
    "getegid", "getresuid", "getresgid", "getgroups", "setuid", "setgid", "setreuid", "setregid", "setresuid",
    "setresgid", "setgroups", "setfsuid", "setfsgid", "capget", "capset", "getrlimit", "setrlimit", "getrusage",
    "times", "sysinfo", "uname", "getpriority", "sched_yield", "sched_getaffinity", "sched_getparam",
    "sched_getscheduler", "sched_getattr", "sched_get_priority_max", "sched_get_priority_min",
    "sched_rr_get_interval", "ioprio_get", "getcpu", "kill", "tkill", "tgkill", "rt_sigaction", "rt_sigprocmask",
    "rt_sigreturn", "rt_sigpending", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
    "sigaltstack", "pause", "restart_syscall", "alarm", "setitimer", "getitimer", "timer_create", "timer_settime",
    "timer_gettime", "timer_getoverrun", "timer_delete", "nanosleep", "clock_gettime", "clock_getres",
    "clock_nanosleep", "gettimeofday", "time", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "shutdown",
    "getsockname", "getpeername", "getsockopt", "getrandom",
)  # fmt: skip
METADATA = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes",
    "futimesat", "utimensat",
)  # fmt: skip
DENIED = (
    "socket", "connect", "bind", "listen", "accept", "accept4", "setsockopt", "ptrace", "process_vm_readv",
    "process_vm_writev", "keyctl", "add_key", "request_key", "bpf", "mount", "umount2", "pivot_root", "chroot",
    "unshare", "setns", "perf_event_open", "userfaultfd", "sched_setscheduler", "sched_setparam", "sched_setattr",
    "ioprio_set", "shmget", "semget", "msgget", "mq_open",
)  # fmt: skip
FAKED = METADATA  # as the own user: a success that changes nothing, since Landlock does not hold these calls
LANDLOCK = ("landlock_create_ruleset", "landlock_restrict_self")

NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
LOW, HIGH = 0, 4  # bytes of an argument's halves on little-endian machines
ALL_BITS = 0xFFFFFFFF


class Check(NamedTuple):
    """Half of an argument must have one of these values, after the mask."""

    argument: int
    values: tuple[int, ...]
    mask: int = ALL_BITS
    half: int = LOW


class Rule(NamedTuple):
    """A call is allowed where all checks hold; else it fails with the error."""

    checks: tuple[Check, ...]
    error: int = errno.EPERM


CHECKED = {
    "clone": Rule((Check(0, (0,), mask=NAMESPACES),)),
    "prlimit64": Rule((Check(0, (0,)),)),  # of the calling process alone
    "setpriority": Rule((Check(0, (0,)), Check(1, (0,)))),
    "sched_setaffinity": Rule((Check(0, (0,)),)),
    "personality": Rule((Check(0, (0, 0xFFFFFFFF)),)),
    # Datagram sockets could be connected to others by name; AF_UNIX streams and packets are bound to their peer.
    "socketpair": Rule((Check(0, (1,)), Check(1, (1, 5), mask=0xF))),
    "sendto": Rule((Check(4, (0,)), Check(4, (0,), half=HIGH))),
    # F_DUPFD to F_SETLKW, F_OFD_GETLK to F_OFD_SETLKW, F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ: no leases
    "fcntl": Rule((Check(1, (*range(8), 36, 37, 38, 1030, 1031, 1032)),), errno.EINVAL),
    # TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: nothing that writes to a terminal
    "ioctl": Rule((Check(1, (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),), errno.ENOTTY),
}
XATTRS = ("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr")

LOAD, AND, EQUAL, GREATER_EQUAL, GREATER, RETURN = 0x20, 0x54, 0x15, 0x35, 0x25, 0x06
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
X32 = 0x40000000

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
ARCHITECTURES = {"x86_64": (0xC000003E, X86_64), "aarch64": (0xC00000B7, AARCH64)}


def program(machine: str = "", *, own_user: bool = False, landlock: bool = False) -> bytes:
    """The filter as `struct sock_filter`s.

    own_user: foreign code runs as the caller's user with the host's files in sight, so that chmod and the like do
    nothing. landlock: it may confine itself further. Raises ValueError for a machine without a table.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise ValueError(f"the filter knows {' and '.join(ARCHITECTURES)}, not {machine}")
    return b"".join(struct.pack("<HBBI", *line) for line in instructions(machine, own_user, landlock))


def instructions(machine: str, own_user: bool, landlock: bool) -> list[Instruction]:
    architecture, numbers = ARCHITECTURES[machine]
    allowed = ALLOWED + (() if own_user else METADATA) + (LANDLOCK if landlock else ())
    errors = dict.fromkeys(DENIED, errno.EPERM) | dict.fromkeys(XATTRS, errno.EOPNOTSUPP)
    errors |= dict.fromkeys(FAKED, 0) if own_user else {}
    lines = [(LOAD, 0, 0, ARCHITECTURE_AT), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT)]
    if machine == "x86_64":
        lines += [(GREATER_EQUAL, 0, 1, X32), (RETURN, 0, 0, KILL)]
    for first, last in runs(numbers[name] for name in allowed if name in numbers):
        lines += [(GREATER_EQUAL, 0, 2, first), (GREATER, 1, 0, last), (RETURN, 0, 0, ALLOW)]
    for name, error in errors.items():
        if name in numbers:
            lines += [(EQUAL, 0, 1, numbers[name]), (RETURN, 0, 0, ERROR | error)]
    for name, rule in CHECKED.items():
        body = checked(rule)
        lines += [(EQUAL, 0, len(body), numbers[name]), *body]
    return [*lines, (RETURN, 0, 0, ERROR | errno.ENOSYS)]


def runs(numbers) -> list[tuple[int, int]]:
    """The first and last of each run of neighbours."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def checked(rule: Rule) -> list[Instruction]:
    """Instructions that end in an answer for a call with checks."""
    lines: list[Instruction] = []
    for check in rule.checks:
        lines += [(LOAD, 0, 0, ARGUMENTS_AT + 8 * check.argument + check.half), (AND, 0, 0, check.mask)]
        for left, value in zip(range(len(check.values), 0, -1), check.values, strict=True):
            lines.append((EQUAL, left, 0, value))  # past the other values and the error
        lines.append((RETURN, 0, 0, ERROR | rule.error))
    return [*lines, (RETURN, 0, 0, ALLOW)]
