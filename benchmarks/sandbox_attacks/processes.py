"""Attacks on processes: signals, tracing and limits of others, and children that mean to outlive their command."""

import ctypes
import errno
import fcntl
import os
import resource
import signal
import struct
import threading
import time

from benchmarks.sandbox_attacks.attack import IS_KILLED, IS_STOPPED, RefusedError, attack
from benchmarks.sandbox_attacks.syscalls import call, daemon, in_child, is_host_root, linger, spin

BRIEF = {"seconds": 0.5}
HARMLESS = signal.SIGURG  # ignored by default; the victim, which the host started for this, notes that it came


@attack()
def kills_a_process(host):
    """Kills a process of the host's user."""
    os.kill(host.victim, signal.SIGKILL)
    return "killed"


@attack()
def stops_a_process(host):
    """Stops a process of the host's user by SIGSTOP."""
    os.kill(host.victim, signal.SIGSTOP)
    return "stopped"


@attack()
def signals_the_caller(host):
    """Sends a signal to the process that ordered the run, and to the servers that it has started."""
    errors = []
    for pid in (host.test, *host.servers):
        try:
            os.kill(pid, HARMLESS)
            return str(pid)
        except OSError as error:
            errors.append(error)
    raise errors[0]


@attack()
def signals_neighbours(host):
    """Looks for a process to signal among those started about when it was, such as those of other boxes."""
    family = (1, os.getpid(), os.getppid())
    for pid in range(max(2, os.getpid() - 300), os.getpid() + 300):
        try:
            os.kill(pid, 0)
        except OSError:
            continue
        if pid not in family:
            return f"process {pid}"
    return None


@attack(works_as="user")
def signals_everyone(host):
    """Sends a signal to all processes that it may (kill -1); the victim of the host would note it."""
    if is_host_root():
        raise RefusedError(errno.EPERM, "root of the machine does not try")
    os.kill(-1, HARMLESS)


@attack(ends=("exited", "killed", "timeout"), limits=BRIEF)
def kills_its_parent(host):
    """Kills its parent, and works on without one."""
    os.kill(os.getppid(), signal.SIGKILL)
    linger()


@attack(ends=("exited", "killed", "timeout"), limits=BRIEF)
def stops_its_parent(host):
    """Stops its parent, so that nobody waits for the deadline."""
    os.kill(os.getppid(), signal.SIGSTOP)
    linger()


@attack(ends=("killed",), unsafe="the group without a sandbox is that of the test")
def kills_its_group(host):
    """Kills its process group, in which a careless parent would be."""
    os.kill(0, signal.SIGKILL)


@attack(ends=IS_KILLED)
def traces_a_process(host):
    """Takes hold of a process of the host by ptrace."""
    call("ptrace", 0x4206, host.victim, 0, 0)  # PTRACE_SEIZE
    return "traced"


@attack(ends=IS_KILLED)
def traces_its_own_child(host):
    """Traces a child, by which a filter of system calls could be got round on old kernels."""
    return in_child(lambda: f"{call('ptrace', 0, 0, 0, 0)}")  # PTRACE_TRACEME


@attack(ends=IS_KILLED)
def reads_memory(host):
    """Reads the memory of a process of the host by process_vm_readv."""
    buffer = ctypes.create_string_buffer(host.victim_size)
    local = struct.pack("=QQ", ctypes.addressof(buffer), host.victim_size)
    remote = struct.pack("=QQ", host.victim_address, host.victim_size)
    call("process_vm_readv", host.victim, local, 1, remote, 1, 0)
    return buffer.raw.decode()


@attack()
def writes_memory(host):
    """Opens the memory of a process of the host by /proc/PID/mem."""
    with open(f"/proc/{host.victim}/mem", "r+b", buffering=0) as file:
        file.seek(host.victim_address)
        return file.read(host.victim_size).decode()


@attack()
def reads_the_map_of_memory(host):
    """Reads where a process of the host has its memory, which makes other attacks easier."""
    with open(f"/proc/{host.victim}/maps", encoding="ascii") as file:
        return file.readline() or None


@attack(ends=IS_KILLED)
def takes_a_descriptor(host):
    """Copies an open descriptor of a process of the host (pidfd_getfd)."""
    handle = call("pidfd_open", host.victim, 0)
    copy = call("pidfd_getfd", handle, host.victim_fd, 0)
    return os.pread(copy, 100, 0).decode()


@attack(ends=IS_KILLED)
def signals_by_a_handle(host):
    """Kills a process of the host by pidfd_send_signal."""
    handle = call("pidfd_open", host.victim, 0)
    call("pidfd_send_signal", handle, int(signal.SIGKILL), 0, 0)
    return "killed"


@attack()
def signals_by_a_pipe(host):
    """Makes a process of the host the owner of a pipe whose readiness is announced by SIGKILL (F_SETOWN, F_SETSIG)."""
    reading, writing = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, host.victim)
    fcntl.fcntl(reading, fcntl.F_SETSIG, int(signal.SIGKILL))
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writing, b"x")


@attack(ends=IS_KILLED)
def limits_a_process(host):
    """Sets the limit of open files of a process of the host."""
    resource.prlimit(host.victim, resource.RLIMIT_NOFILE, (16, 64))
    return "limited"


@attack(ends=IS_KILLED, unsafe="what would suffer is a supervisor, and there is none")
def limits_its_parent(host):
    """Takes its parent's open files away by prlimit, so that it can start and read nothing more."""
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))


@attack(ends=IS_KILLED)
def reads_limits_of_a_process(host):
    """Reads the limits of a process of the host."""
    return str(resource.prlimit(host.victim, resource.RLIMIT_NOFILE))


@attack(ends=IS_KILLED)
def renices_a_process(host):
    """Lowers the priority of a process of the host."""
    os.setpriority(os.PRIO_PROCESS, host.victim, 7)
    return "lowered"


@attack(ends=IS_KILLED, works_as="user")
def renices_all_of_the_user(host):
    """Lowers the priority of all processes of its user at once."""
    if is_host_root():
        raise RefusedError(errno.EPERM, "root of the machine does not try")
    os.setpriority(os.PRIO_USER, 0, 5)


@attack(ends=IS_KILLED)
def pins_a_process(host):
    """Ties a process of the host to one core."""
    os.sched_setaffinity(host.victim, {min(os.sched_getaffinity(0))})
    return "tied"


@attack(ends=IS_KILLED)
def idles_a_process(host):
    """Makes the scheduler run a process of the host only when all else is idle."""
    os.sched_setscheduler(host.victim, os.SCHED_IDLE, os.sched_param(0))
    return "idled"


@attack(ends=IS_KILLED, works_as="root")
def takes_real_time(host):
    """Takes a real-time priority, which starves all others on its core."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return "taken"


@attack(ends=IS_KILLED)
def slows_the_disk_of_a_process(host):
    """Makes a process of the host wait for the disk behind all others (ioprio_set)."""
    call("ioprio_set", 1, host.victim, 3 << 13)
    return "slowed"


@attack(ends=IS_KILLED)
def compares_with_a_process(host):
    """Compares kernel addresses with a process of the host (kcmp)."""
    return str(call("kcmp", os.getpid(), host.victim, 0, host.victim_fd, host.victim_fd))


@attack()
def leaves_a_daemon(host):
    """Leaves a process that has a session of its own, whose parents are gone, and that ignores SIGTERM."""

    def outlive() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.closerange(0, 1024)
        linger()

    daemon(outlive)


@attack()
def leaves_a_daemon_on_the_pipe(host):
    """Leaves a process that keeps stdout open, so that a reader never sees its end."""
    daemon(linger)


@attack()
def leaves_a_daemon_of_odd_name(host):
    """Leaves a process whose name reads like the end of its line in /proc/PID/stat: a zombie, child of init."""

    def outlive() -> None:
        ctypes.CDLL(None).prctl(15, b"x) Z 1 1 1 (", 0, 0, 0)
        linger()

    daemon(outlive)


@attack()
def leaves_a_daemon_that_cannot_be_read(host):
    """Leaves a process whose /proc entries belong to root, which forgets to die with its parent."""

    def outlive() -> None:
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
        linger()

    daemon(outlive)


@attack()
def leaves_a_family_of_its_own(host):
    """Leaves a process that adopts its orphans (PR_SET_CHILD_SUBREAPER) and starts new ones as they die."""

    def family() -> None:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            daemon(lambda: time.sleep(0.05))
            time.sleep(0.01)

    daemon(family)


@attack()
def hops_from_process_to_process(host):
    """Leaves a process that forks and ends again and again, and so is gone whenever it is to be killed."""
    daemon(lambda: hop(time.monotonic() + 8, 0.003))


@attack(limits={"processes": 32}, unsafe="many of them are hard to catch by plain means")
def hops_in_a_crowd(host):
    """Leaves ten such processes at once."""
    for _ in range(10):
        daemon(lambda: hop(time.monotonic() + 8))


def hop(end: float, pause: float = 0.0) -> None:
    while time.monotonic() < end:
        time.sleep(pause)
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            time.sleep(0.001)


@attack()
def leaves_stopped_children(host):
    """Leaves children that have stopped themselves, for which a wait would not end."""
    for _ in range(4):
        if os.fork() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            linger()
            os._exit(0)


@attack(ends=IS_STOPPED, limits=BRIEF)
def stops_itself(host):
    """Stops itself by SIGSTOP, so that it never ends."""
    os.kill(os.getpid(), signal.SIGSTOP)


@attack(ends=IS_STOPPED, limits=BRIEF)
def ignores_all_signals(host):
    """Ignores all signals that can be ignored, and works on."""
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    spin()


@attack(ends=IS_STOPPED, limits=BRIEF)
def closes_all_and_works_on(host):
    """Closes all descriptors, so that its output has ended, and works on."""
    os.closerange(0, 4096)
    spin()


@attack(ends=IS_STOPPED, limits=BRIEF)
def survives_its_first_thread(host):
    """Ends its first thread alone: the process is shown as a zombie while another thread works on."""
    threading.Thread(target=spin).start()
    time.sleep(0.05)
    ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)


@attack(ends=IS_STOPPED, limits=BRIEF)
def waits_for_ever(host):
    """Waits for ever, with children that wait too."""
    for _ in range(3):
        if os.fork() == 0:
            break
    linger()


@attack(limits={"seconds": 6.0})
def leaves_zombies(host):
    """Leaves children that have ended and that nobody has waited for."""
    for _ in range(20):
        if os.fork() == 0:
            os._exit(0)
    if os.fork() == 0:
        os.setsid()
        for _ in range(5):
            if os.fork() == 0:
                os._exit(0)
        linger()
        os._exit(0)


@attack(works_as="root")
def becomes_root(host):
    """Takes the uid and gid 0 back that its starter gave up."""
    if is_host_root():
        return "is root of the machine"
    before = os.getresuid(), os.getresgid()
    if 0 in before[0]:
        raise RefusedError(errno.EPERM, f"{before}: 0 of a namespace of its own")
    os.setresuid(0, 0, 0)
    return f"{before}"


@attack(works_as="root")
def changes_its_groups(host):
    """Takes groups of the host."""
    os.setgroups([0, 4, 6])
    return str(os.getgroups())


@attack(works_as="root")
def has_capabilities(host):
    """Looks for capabilities that it holds."""
    held = ctypes.create_string_buffer(24)
    call("capget", struct.pack("=Ii", 0x20080522, 0), held)
    effective, permitted, inheritable = struct.unpack("=6I", held.raw)[:3]
    return f"{effective:x} {permitted:x}" if effective or permitted or inheritable else None


@attack(works_as="root", capability=24)
def raises_its_limits(host):
    """Raises hard limits above what it was given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, resource.RLIM_INFINITY if hard >= 0 else hard))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + 1))
    except ValueError as error:
        raise RefusedError(errno.EPERM, str(error)) from error
    return "raised"


@attack()
def dumps_its_core(host):
    """Raises its limit of core files and crashes, so that the machine's crash handler gets to see its memory."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
        os.abort()
    return "dumped" if os.WCOREDUMP(os.waitpid(pid, 0)[1]) else None
