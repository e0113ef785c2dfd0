"""Attacks on limits: memory, processes, disk, inodes, output, descriptors and time. Each stops by itself in the end."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import resource
import signal
import sys
import threading
import time

from benchmarks.sandbox_attacks.attack import IS_KILLED, IS_STOPPED, MIB, SLOW, RefusedError, attack
from benchmarks.sandbox_attacks.syscalls import call, daemon, linger, spin

SMALL_MEMORY = {"memory_bytes": 128 * MIB, "seconds": 8.0}
SMALL_DISK = {"disk_bytes": 8 * MIB, "files": 256, "seconds": 8.0}
FEW = {"processes": 16, "seconds": 6.0}
BRIEF = {"seconds": 0.5}
HARMLESS = "it harms only itself: what counts is the status, and that the sandbox works on"
BOMB: dict = {"ends": ("exited", "killed", "timeout", "memory"), "limits": {"processes": 32, "seconds": 1.0}}
OUT_OF_MEMORY = ("exited", "memory", "killed")
OUT_OF_DISK = ("exited", "disk")
CHUNK = b"\1" * MIB


def twice(host, field: str) -> int:
    """A flood has worked once it holds twice the limit."""
    return 2 * host.limits[field]


@attack(ends=OUT_OF_MEMORY, limits=SMALL_MEMORY)
def touches_memory(host):
    """Touches twice the memory that it may have, in one process."""
    held = []
    while len(held) * MIB < twice(host, "memory_bytes"):
        held.append(bytearray(CHUNK))
    time.sleep(0.5)
    return f"held {len(held)} MiB"


@attack(ends=OUT_OF_MEMORY, limits=SMALL_MEMORY)
def touches_memory_in_children(host):
    """Touches twice the memory in eight processes, none of which has more than a quarter of the limit."""
    reading, writing = os.pipe()
    share = twice(host, "memory_bytes") // 8
    children = []
    for _ in range(8):
        children.append(os.fork())
        if children[-1] == 0:
            held = bytearray(CHUNK) * (share // MIB)
            os.write(writing, b"x")
            linger(4)
            os._exit(len(held) == 0)
    os.close(writing)
    done = 0
    while part := os.read(reading, 8):
        done += len(part)
        if done == 8:
            break
    time.sleep(0.5)
    alive = [pid for pid in children if os.waitpid(pid, os.WNOHANG) == (0, 0)]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return "all eight hold their share" if len(alive) == 8 and done == 8 else None


@attack(ends=OUT_OF_MEMORY, limits=SMALL_MEMORY)
def touches_shared_memory(host):
    """Touches twice the memory in a shared mapping, which is no process's own."""
    size = twice(host, "memory_bytes")
    held = mmap.mmap(-1, size)
    for offset in range(0, size, mmap.PAGESIZE):
        held[offset] = 1
    time.sleep(0.5)
    return f"held {size // MIB} MiB"


@attack(ends=(*OUT_OF_MEMORY, "disk"), limits=SMALL_MEMORY)
def fills_memory_files(host):
    """Writes twice the memory into files of memory (memfd), which count neither as address space nor as disk."""
    descriptor = call("memfd_create", b"flood", 0)
    written = 0
    while written < twice(host, "memory_bytes"):
        written += os.write(descriptor, CHUNK)
    time.sleep(0.5)
    return f"wrote {written // MIB} MiB"


@attack(ends=OUT_OF_MEMORY, limits=SMALL_MEMORY, works_as="root")
def fills_pipes(host):
    """Fills the buffers of many pipes, which are the kernel's memory."""
    written = 0
    pipes = []
    while written < twice(host, "memory_bytes"):
        pipes.append(os.pipe())
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipes[-1][1], fcntl.F_SETPIPE_SZ, MIB)
        os.set_blocking(pipes[-1][1], False)
        written += os.write(pipes[-1][1], CHUNK)
    return f"filled {written // MIB} MiB"


@attack(ends=OUT_OF_MEMORY, limits=SMALL_MEMORY, works_as="root")
def locks_memory(host):
    """Locks memory, so that the machine cannot swap it out."""
    page = mmap.mmap(-1, 64 * MIB)
    if ctypes.CDLL(None, use_errno=True).mlock(
        ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page))), 64 * MIB
    ):
        raise OSError(ctypes.get_errno(), "mlock")
    return "locked 64 MiB"


@attack(limits=FEW)
def starts_many_processes(host):
    """Starts three times the processes that it may have at a time."""
    started = 0
    try:
        for _ in range(3 * host.limits["processes"]):
            if os.fork() == 0:
                linger(2)
                os._exit(0)
            started += 1
    except OSError as error:
        if started > host.limits["processes"]:
            raise
        raise RefusedError(errno.EAGAIN, f"after {started}: {error}") from error
    return f"started {started}"


@attack(limits=FEW)
def starts_many_threads(host):
    """Starts three times the threads that it may have at a time."""
    started = 0
    try:
        for _ in range(3 * host.limits["processes"]):
            threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
            started += 1
    except RuntimeError as error:
        raise RefusedError(errno.EAGAIN, f"after {started}: {error}") from error
    return f"started {started}"


@attack(**BOMB, unsafe="it never stops by itself")
def doubles_for_ever(host):
    """Forks in every process, again and again: a fork bomb."""
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.001)


@attack(**BOMB, unsafe="it never stops by itself")
def doubles_in_a_shell(host):
    """Runs the fork bomb of the shell."""
    os.execvp("bash", ["bash", "-c", "f() { f | f & }; f; sleep 20"])


@attack(ends=OUT_OF_DISK, limits=SMALL_DISK)
def writes_a_large_file(host):
    """Writes twice the bytes that its disk has, in one file."""
    with open("flood", "wb", buffering=0) as file:
        written = write_up_to(file, twice(host, "disk_bytes"))
    time.sleep(0.5)
    return f"wrote {written} bytes"


@attack(ends=OUT_OF_DISK, limits=SMALL_DISK)
def writes_many_files(host):
    """Writes twice the bytes that its disk has, in files of half a MiB."""
    for index in range(twice(host, "disk_bytes") * 2 // MIB):
        with open(f"flood{index}", "wb", buffering=0) as file:
            write_up_to(file, MIB // 2)
    time.sleep(0.5)
    return "wrote them all"


@attack(ends=OUT_OF_DISK, limits=SMALL_DISK)
def holds_removed_files(host):
    """Writes twice the bytes into files that it has removed, which no listing shows."""
    held = []
    for index in range(twice(host, "disk_bytes") * 2 // MIB):
        held.append(open(f"flood{index}", "wb", buffering=0))  # noqa: SIM115
        os.unlink(f"flood{index}")
        write_up_to(held[-1], MIB // 2)
    time.sleep(0.5)
    return f"held {len(held)} files"


@attack(ends=OUT_OF_DISK, limits=SMALL_DISK)
def writes_by_fallocate(host):
    """Takes twice the bytes without writing them (fallocate)."""
    with open("flood", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, twice(host, "disk_bytes"))
    time.sleep(0.5)
    return "taken"


@attack(ends=(*OUT_OF_DISK, "memory"), limits=SMALL_DISK)
def fills_all_writable_folders(host):
    """Writes wherever it may, /, /tmp and /dev/shm among them: twice the limit in all."""
    written = 0
    for folder in (".", "/", "/tmp", "/dev/shm", "/dev", "/var/tmp", "/run", "/home", "/root", "/etc", "/proc", "/mnt"):
        path = os.path.join(folder, f"ling_attack_{host.token}")
        try:
            with open(path, "wb", buffering=0) as file:
                written += write_up_to(file, twice(host, "disk_bytes") - written)
        except OSError as error:
            written += size_of(path)
            print(f"{folder}: {written} bytes, {error}", file=sys.stderr)
    if written <= 3 * host.limits["disk_bytes"] // 2:
        raise RefusedError(errno.ENOSPC, f"{written} bytes in all")
    time.sleep(0.5)
    return f"wrote {written} bytes"


@attack(ends=(*OUT_OF_DISK, "memory"), limits=SMALL_DISK)
def makes_files_everywhere(host):
    """Makes files wherever it may: three times the limit in all, and in no folder more than the limit."""
    made = 0
    for folder in (".", "/", "/tmp", "/dev/shm", "/dev", "/var/tmp", "/run"):
        try:
            for index in range(host.limits["files"]):
                os.close(os.open(os.path.join(folder, f"ling_attack_{host.token}_{index}"), os.O_CREAT | os.O_EXCL))
                made += 1
                if made >= 3 * host.limits["files"]:
                    return f"made {made}"
        except OSError as error:
            print(f"{folder}: {made} files, {error}", file=sys.stderr)
    raise RefusedError(errno.ENOSPC, f"{made} files in all")


@attack(ends=OUT_OF_DISK, limits=SMALL_DISK)
def makes_many_files(host):
    """Makes twice the empty files that it may have."""
    for index in range(twice(host, "files")):
        os.close(os.open(f"file{index}", os.O_CREAT))
    time.sleep(0.5)
    return "made them all"


@attack(ends=OUT_OF_DISK, limits=SMALL_DISK)
def makes_many_links(host):
    """Makes twice as many folders, links and pipes as it may have files."""
    for index in range(twice(host, "files")):
        (os.mkdir(f"d{index}"), os.symlink("x", f"l{index}"), os.mkfifo(f"p{index}"))
    time.sleep(0.5)
    return "made them all"


def write_up_to(file, size: int) -> int:
    written = 0
    while written < size:
        written += file.write(CHUNK[: size - written])
    return written


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


@attack()
def floods_stdout(host):
    """Writes sixteen times the output that is kept, and ends."""
    flood(1)


@attack()
def floods_stderr(host):
    """Writes sixteen times the errors that are kept, and ends."""
    flood(2)


@attack()
def floods_both(host):
    """Writes to both outputs at once from two processes, without a line end."""
    pid = os.fork()
    flood(1 if pid else 2)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def flood(descriptor: int) -> None:
    for _ in range(16):
        view = memoryview(CHUNK)
        while view:
            view = view[os.write(descriptor, view) :]


@attack(ends=IS_STOPPED, limits=BRIEF)
def floods_for_ever(host):
    """Writes output until it is stopped."""
    end = time.monotonic() + 4
    while time.monotonic() < end:
        os.write(1, CHUNK)


@attack(ends=IS_STOPPED, limits=BRIEF)
def drips_for_ever(host):
    """Writes a byte now and then, so that a reader that waits for silence waits for ever."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        os.write(1, b".")
        time.sleep(0.01)


@attack(stdin=b"x" * (8 * MIB), unsafe="only a parent that waits would suffer")
def leaves_its_input_unread(host):
    """Ends without reading 8 MiB of stdin, which a careless parent would write for ever."""


@attack(stdin=b"x" * (8 * MIB), unsafe="only a parent that waits would suffer")
def closes_its_input(host):
    """Closes stdin at once while the parent writes, which would get SIGPIPE."""
    os.close(0)
    time.sleep(0.2)


@attack(limits={"seconds": 6.0})
def opens_many_files(host):
    """Opens 20,000 descriptors, of which the machine has a limited number."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = []
    try:
        for _ in range(19_000):
            held.append(os.dup(0))
    except OSError as error:
        raise RefusedError(errno.EMFILE, f"after {len(held)}: {error}") from error
    return f"opened {len(held)}"


@attack(limits={"seconds": 6.0}, unsafe="the machine would run out")
def opens_many_in_children(host):
    """Opens thousands of pipes in each of many processes, for the machine's total to run out."""
    for _ in range(8):
        if os.fork() == 0:
            try:
                while True:
                    os.pipe()
            except OSError:
                time.sleep(0.5)
            os._exit(0)
    for _ in range(8):
        os.wait()


@attack(unsafe=HARMLESS)
def starts_with_large_arguments(host):
    """Starts a program with megabytes of arguments."""
    pid = os.fork()
    if pid == 0:
        try:
            os.execvp("true", ["true", *["x" * 100_000] * 18])
        finally:
            os._exit(1)
    os.waitpid(pid, 0)


@attack(ends=IS_STOPPED, limits=BRIEF)
def matches_for_ever(host):
    """Matches a regular expression that takes exponential time, inside of one call of C."""
    if os.fork() == 0:
        linger()
        os._exit(0)
    re.match("(a+)+$", "a" * 40 + "b")


@attack(ends=(*IS_STOPPED, "memory", "exited"), limits={"seconds": 1.0, "memory_bytes": 256 * MIB})
def computes_for_ever(host):
    """Computes a number of a hundred million digits, inside of one call of C."""
    return None if 7 ** (10**9) else ""


@attack(ends=("exited", "killed", "memory"), limits=SMALL_MEMORY)
def recurses_without_end(host):
    """Calls itself until the stack ends."""
    sys.setrecursionlimit(10**9)

    def deeper(level: int) -> int:
        return max(deeper(level + 1), level)

    deeper(0)


@attack(ends=("killed", "exited", "memory"), limits=SMALL_MEMORY, unsafe=HARMLESS)
def recurses_in_c(host):
    """Nests so deeply that C code overflows its stack."""
    nested: list = []
    for _ in range(10**6):
        nested = [nested]
    sys.setrecursionlimit(10**9)
    repr(nested)


@attack(ends=("killed",), limits=BRIEF, unsafe=HARMLESS)
def crashes(host):
    """Reads from address 0."""
    ctypes.string_at(0)


@attack(ends=IS_KILLED, limits=SMALL_DISK)
def writes_from_a_daemon(host):
    """Leaves a daemon that fills the disk after its command has ended."""

    def fill() -> None:
        time.sleep(0.3)
        with open("late", "wb", buffering=0) as file:
            write_up_to(file, twice(host, "disk_bytes"))
        linger()

    daemon(fill)


@attack(ends=IS_STOPPED, limits=BRIEF)
def works_on_all_cores(host):
    """Works on all cores without end."""
    for _ in range(3):
        if os.fork() == 0:
            break
    spin()


@attack(
    ends=(*OUT_OF_MEMORY, "timeout"),
    limits={"memory_bytes": 256 * MIB, "seconds": 10.0},
    speed=SLOW,
    unsafe="it takes what the machine has",
)
def touches_memory_in_a_crowd(host):
    """Touches 64 MiB in each of as many processes as it gets, again and again."""
    for _ in range(60):
        try:
            if os.fork() == 0:
                while True:
                    held = bytearray(CHUNK) * 64
                    time.sleep(0.01 if held else 0)
        except OSError:
            break
    linger()


@attack(ends=(*OUT_OF_DISK, "timeout"), limits={"seconds": 10.0}, speed=SLOW, unsafe="it takes what the disk has")
def writes_and_removes_for_ever(host):
    """Writes and removes files in many processes as fast as it can."""
    for _ in range(8):
        if os.fork() == 0:
            break
    while True:
        with contextlib.suppress(OSError), open(f"churn{os.getpid()}", "wb", buffering=0) as file:
            write_up_to(file, 32 * MIB)
        os.unlink(f"churn{os.getpid()}")
