"""Attacks on the kernel: namespaces, mounts, programs from memory, foreign calls, and what only root may do."""

import ctypes
import errno
import os
import struct
import time

from benchmarks.sandbox_attacks.attack import IS_KILLED, RefusedError, attack
from benchmarks.sandbox_attacks.syscalls import X86, call, call_number, in_child, machine_code, only_on_x86

SPACES = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}
CHILD = 17  # SIGCHLD


@attack(ends=IS_KILLED)
def makes_a_user_namespace(host):
    """Makes a user namespace of its own, in which it has all capabilities."""
    return in_child(lambda: f"{call('unshare', SPACES['user'])}")


@attack(ends=IS_KILLED, works_as="root")
def makes_other_namespaces(host):
    """Makes a namespace of each other kind."""
    made = []
    for name, flag in SPACES.items():
        try:
            if name != "user" and in_child(lambda flag=flag: f"{call('unshare', flag)}"):
                made.append(name)
        except OSError:
            continue
    return " ".join(made) or None


@attack(ends=IS_KILLED)
def mounts_in_its_own_namespace(host):
    """Makes a user and a mount namespace and mounts a tmpfs without a limit there."""

    def inside() -> str:
        call("unshare", SPACES["user"] | SPACES["mount"])
        call("mount", b"none", b"/tmp", b"tmpfs", 0, None)
        return "mounted"

    return in_child(inside)


@attack(ends=IS_KILLED)
def clones_into_a_namespace(host):
    """Starts a process in a user namespace of its own by clone."""
    return ended(call("clone", SPACES["user"] | CHILD, 0, 0, 0, 0))


@attack(ends=IS_KILLED)
def clones_by_clone3(host):
    """Starts a process in a user namespace by clone3, whose flags a filter cannot see."""
    return ended(call("clone3", struct.pack("=11Q", SPACES["user"], 0, 0, 0, CHILD, 0, 0, 0, 0, 0, 0), 88))


def ended(pid: int) -> str:
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "started"


@attack(ends=IS_KILLED, works_as="root")
def enters_a_namespace(host):
    """Enters the namespaces of the processes of the host."""
    errors = []
    for pid in (1, os.getppid(), host.victim, *host.servers):
        try:
            with open(f"/proc/{pid}/ns/uts", "rb") as file:
                return in_child(lambda file=file: f"{call('setns', file.fileno(), 0)}")
        except OSError as error:
            errors.append(error)
    raise errors[0]


@attack(ends=IS_KILLED, works_as="root")
def mounts(host):
    """Mounts a tmpfs; without a sandbox in a mount namespace of its own."""

    def inside() -> str:
        if host.plain:
            call("unshare", SPACES["mount"])
            call("mount", b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
        call("mount", b"none", b"/tmp", b"tmpfs", 0, None)
        return "mounted"

    return in_child(inside)


@attack(ends=IS_KILLED, works_as="root")
def binds_a_host_folder(host):
    """Binds the host's root over a folder of the box and makes it writable."""

    def inside() -> str:
        if host.plain:
            call("unshare", SPACES["mount"])
            call("mount", b"none", b"/", None, 0x44000, None)
        os.mkdir("root")
        call("mount", b"/", b"root", None, 0x1000, None)  # MS_BIND
        call("mount", b"none", b"root", None, 0x1020, None)  # MS_BIND | MS_REMOUNT, without MS_RDONLY
        return "bound"

    return in_child(inside)


@attack(ends=IS_KILLED, works_as="root")
def mounts_by_the_new_calls(host):
    """Opens a file system and a copy of a mount by fsopen and open_tree, which older filters do not know."""
    opened = []
    for name, arguments in (("fsopen", (b"tmpfs", 0)), ("open_tree", (-100, b"/", 1))):
        try:
            os.close(call(name, *arguments))
            opened.append(name)
        except OSError:
            continue
    return " ".join(opened) or None


@attack(ends=IS_KILLED, unsafe="it would change the root of the machine")
def changes_the_root_mount(host):
    """Makes a folder of its own the root of all mounts (pivot_root)."""
    os.makedirs("new/old")
    call("pivot_root", b"new", b"new/old")
    return "changed"


@attack(ends=IS_KILLED, works_as="root")
def leaves_by_chroot(host):
    """Climbs out of the root folder by a second chroot."""

    def inside() -> str:
        os.mkdir("jail")
        os.chroot("jail")
        for _ in range(60):
            os.chdir("..")
        os.chroot(".")
        with open(host.secret, encoding="utf-8") as file:
            return file.read()

    return in_child(inside)


@attack(ends=IS_KILLED, works_as="root")
def opens_by_handle(host):
    """Opens a file by its number in the file system, past all folders (open_by_handle_at, "shocker")."""
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 64, 0) + bytes(64))
    mount = ctypes.c_int()
    call("name_to_handle_at", -100, b".", handle, ctypes.byref(mount), 0)
    folder = os.open(".", os.O_RDONLY)
    return f"descriptor {call('open_by_handle_at', folder, handle, 0)}"


@attack(ends=IS_KILLED)
def runs_from_memory(host):
    """Runs a program from a file of memory, which has no path (memfd_create and execve)."""
    descriptor = call("memfd_create", b"program", 0)
    with open("/bin/true", "rb") as file:
        os.write(descriptor, file.read())

    def inside() -> None:
        os.execv(f"/proc/self/fd/{descriptor}", ["true"])

    return in_child_program(inside)


@attack(ends=IS_KILLED)
def runs_from_memory_by_execveat(host):
    """Runs a program from a file of memory by execveat with an empty path."""
    descriptor = call("memfd_create", b"program", 0)
    with open("/bin/true", "rb") as file:
        os.write(descriptor, file.read())
    arguments = (ctypes.c_char_p * 2)(b"true", None)

    def inside() -> None:
        call("execveat", descriptor, b"", arguments, None, 0x1000)  # AT_EMPTY_PATH

    return in_child_program(inside)


def in_child_program(start) -> str:
    """Whether a forked process could become another program that ends with 0."""
    pid = os.fork()
    if pid == 0:
        try:
            start()
        finally:
            os._exit(99)
    status = os.waitpid(pid, 0)[1]
    if status:
        raise RefusedError(errno.EACCES, f"status {status}")
    return "ran"


@attack(ends=IS_KILLED)
def makes_secret_memory(host):
    """Makes memory that not even the kernel can read back (memfd_secret)."""
    os.close(call("memfd_secret", 0))
    return "made"


@attack(ends=IS_KILLED)
def keeps_a_key(host):
    """Stores a key in a keyring of its user, which outlives the box."""
    number = call("add_key", b"user", f"ling_attack_{host.token}".encode(), b"x", 1, -2)
    return f"key {number}"


@attack(ends=IS_KILLED)
def reads_a_keyring(host):
    """Looks up the keyring of its user, in which others keep passwords (keyctl)."""
    return f"keyring {call('keyctl', 0, -4, 1, 0, 0)}"


@attack(ends=IS_KILLED, works_as="root")
def loads_bpf(host):
    """Makes a map of bpf programs."""
    os.close(call("bpf", 0, struct.pack("=4I", 2, 4, 4, 1) + bytes(104), 120))
    return "made"


@attack(ends=IS_KILLED)
def counts_events(host):
    """Opens a counter of performance events, which observes others by their use of the machine."""
    attributes = struct.pack("=IIQ", 1, 112, 1) + bytes(24) + struct.pack("=Q", 0x61) + bytes(64)
    os.close(call("perf_event_open", attributes, 0, -1, -1, 0))
    return "opened"


@attack(ends=IS_KILLED)
def opens_io_uring(host):
    """Opens a queue of io_uring, whose calls no filter sees."""
    os.close(call("io_uring_setup", 4, bytes(120)))
    return "opened"


@attack(ends=IS_KILLED)
def handles_page_faults(host):
    """Opens userfaultfd, which halts the kernel in the middle of copying."""
    os.close(call("userfaultfd", 1))
    return "opened"


@attack(ends=IS_KILLED, works_as="root")
def watches_all_files(host):
    """Opens fanotify, which sees all files that are opened on the machine."""
    os.close(call("fanotify_init", 0, 0))
    return "opened"


@attack(ends=IS_KILLED)
def changes_its_personality(host):
    """Takes the randomisation of addresses away and makes all memory executable."""
    return f"{in_child(lambda: str(call('personality', 0x0440000)))}"


@attack(ends=IS_KILLED, works_as="root")
def reads_the_kernel_log(host):
    """Reads the kernel's messages, which have addresses and names in them."""
    buffer = ctypes.create_string_buffer(4096)
    return f"{call('syslog', 3, buffer, 4096)} bytes"


@attack(ends=IS_KILLED)
def calls_by_32_bits(host):
    """Makes a 32-bit system call from 64-bit code (int 0x80)."""
    only_on_x86()
    number = machine_code(b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\x48\x98\xc3")  # getpid
    if number != os.getpid():
        raise RefusedError(errno.ENOSYS, f"got {number}")
    return "called"


@attack(ends=IS_KILLED)
def calls_by_x32(host):
    """Makes a system call by a number of the x32 world."""
    only_on_x86()
    return f"{call_number(0x40000000 | 39)}"


@attack(ends=IS_KILLED)
def runs_a_32_bit_program(host):
    """Runs a program of 32-bit machine code, written byte by byte, that makes 32-bit calls."""
    only_on_x86()
    code = b"\x31\xdb\xb8\x01\x00\x00\x00\xcd\x80"  # exit(0)
    head = (
        b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x08048054, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    )
    part = struct.pack("<8I", 1, 0, 0x08048000, 0x08048000, 84 + len(code), 84 + len(code), 5, 4096)
    with open("tiny", "wb") as file:
        file.write(head + part + code)
    os.chmod("tiny", 0o755)
    return in_child_program(lambda: os.execv("./tiny", ["tiny"]))


@attack(ends=IS_KILLED, works_as="root")
def reaches_the_ports(host):
    """Takes the right to talk to the machine's devices by port instructions (iopl)."""
    if not X86:
        raise RefusedError(errno.ENOSYS, "this machine is not x86_64")
    return in_child(lambda: str(call_number(172, 3)))


@attack(ends=IS_KILLED, works_as="root")
def changes_the_hostname(host):
    """Sets the machine's name, to what it is."""
    import socket

    socket.sethostname(os.uname().nodename)
    return "set"


@attack(ends=IS_KILLED, unsafe="it sets the clock of the machine")
def sets_the_clock(host):
    """Sets the machine's clock."""
    time.clock_settime(time.CLOCK_REALTIME, time.time())
    return "set"


def permitted(name: str, *arguments: object) -> str:
    """Makes a call whose arguments are wrong: EPERM means that the right was missing, other errors that it was not."""
    try:
        return f"returned {call(name, *arguments)}"
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        return f"{error}: the arguments alone were refused"


@attack(ends=IS_KILLED, unsafe="it comes close to the end of the machine")
def reboots(host):
    """Asks for a reboot, with a wrong password that the kernel looks at after the right."""
    return permitted("reboot", 0, 0, 0, 0)


@attack(ends=IS_KILLED, unsafe="it comes close to the end of the machine")
def loads_another_kernel(host):
    """Loads another kernel to start (kexec), with flags that do not exist."""
    return permitted("kexec_load", 0, 0, 0, 0x7FFF)


@attack(ends=IS_KILLED, unsafe="it comes close to changing the kernel")
def loads_a_module(host):
    """Loads a module into the kernel, from an address that is not there."""
    return permitted("init_module", 0, 0, 0)


@attack(ends=IS_KILLED, unsafe="it comes close to changing the machine's memory")
def adds_swap(host):
    """Adds a file as swap that is none."""
    with open("swap", "wb") as file:
        file.write(bytes(8192))
    return permitted("swapon", b"swap", 0)
