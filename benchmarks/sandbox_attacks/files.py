"""Attacks on files of the host: reading, writing, links out, device nodes, and what the host reads back."""

import ctypes
import errno
import glob
import os
import stat
import subprocess
import sys

from benchmarks.sandbox_attacks.attack import IS_KILLED, RefusedError, attack
from benchmarks.sandbox_attacks.syscalls import call


def read(path: str, size: int = 200) -> str:
    with open(path, "rb") as file:
        return repr(file.read(size))


def left_in(folder: str, host, suffix: str = "") -> str:
    """Writes a file; whether it came to lie on the host is for the host to see. Returns its path."""
    path = os.path.join(folder, f"ling_attack_{host.token}{suffix}")
    with open(path, "x", encoding="utf-8") as file:
        file.write("# written by an attack\n")
    return path


@attack()
def reads_a_secret(host):
    """Reads a file of the host's user that nobody else may read."""
    return read(host.secret)


@attack(works_as="root")
def reads_password_hashes(host):
    """Reads /etc/shadow."""
    return f"{len(read('/etc/shadow'))} characters"


@attack(unsafe="what lies there is the user's own; a planted home proves it by reads_a_secret")
def lists_ssh_keys(host):
    """Lists ~/.ssh of the host's user."""
    return f"{len(os.listdir(os.path.join(host.home, '.ssh')))} files"


@attack()
def lists_a_folder(host):
    """Lists the names in a folder of the host."""
    return ", ".join(os.listdir(host.folder))


@attack()
def reads_by_dots(host):
    """Reads the secret by a path of many `..`."""
    return read("../" * 40 + host.secret.lstrip("/"))


@attack()
def reads_by_proc_root(host):
    """Reads the secret through the root folders of other processes in /proc."""
    errors = []
    for pid in (1, os.getppid(), host.test, host.victim, *host.servers, "self", "thread-self"):
        for link in ("root", "cwd"):
            try:
                return read(f"/proc/{pid}/{link}/{host.secret}")
            except OSError as error:
                errors.append(error)
    raise errors[0]


@attack()
def reads_an_open_file_of_a_process(host):
    """Reads the secret through the descriptors of a process of the host."""
    return read(f"/proc/{host.victim}/fd/{host.victim_fd}")


@attack()
def reads_an_environment(host):
    """Reads the environment of a process of the host."""
    return read(f"/proc/{host.victim}/environ", 4000)


@attack()
def reads_a_command_line(host):
    """Reads the command line of a process of the host, where passwords are seen at times."""
    return read(f"/proc/{host.victim}/cmdline", 4000)


@attack()
def reads_its_own_environment(host):
    """Looks for secrets of the caller in the environment that it was started with."""
    found = [name for name in os.environ if "LING_ATTACK" in name]
    if not found:
        raise RefusedError(errno.ENOENT, "no secret among " + " ".join(os.environ))
    return " ".join(os.environ[name] for name in found)


@attack()
def reads_other_boxes(host):
    """Looks for the files of another box beside its own, above it and where temporary files are."""
    places = {os.path.dirname(os.getcwd()), "/tmp", "/", os.path.dirname(os.environ.get("TMPDIR", "/tmp"))}
    for place in places:
        for pattern in ("*/neighbour.txt", "*/*/neighbour.txt"):
            for path in glob.glob(pattern, root_dir=place):
                return read(os.path.join(place, path))
    return None


@attack()
def writes_to_a_host_file(host):
    """Appends to a file of the host's user."""
    with open(host.file, "a", encoding="utf-8") as file:
        file.write("more\n")


@attack()
def truncates_a_host_file(host):
    """Truncates a file of the host by its path, without opening it."""
    os.truncate(host.file, 0)


@attack()
def removes_a_host_file(host):
    """Removes a file of the host."""
    os.unlink(host.file)


@attack()
def renames_a_host_file(host):
    """Renames a file of the host, and moves one into the box."""
    try:
        os.rename(host.file, host.file + ".new")
    finally:
        os.rename(host.secret, "moved")


@attack()
def changes_the_mode_of_a_host_file(host):
    """Makes a secret of the host readable for all."""
    os.chmod(host.secret, 0o666)


@attack()
def changes_the_mode_by_descriptor(host):
    """Changes a mode through a descriptor that was opened with O_PATH, by /proc/self/fd."""
    descriptor = os.open(host.secret, os.O_PATH)
    os.chmod(f"/proc/self/fd/{descriptor}", 0o666)


@attack(works_as="root")
def changes_the_owner_of_a_host_file(host):
    """Gives a file of the host to another user."""
    os.chown(host.file, 12345, 12345)


@attack()
def changes_the_times_of_a_host_file(host):
    """Sets the times of a host's file, so that build tools trust a stale one."""
    os.utime(host.file, (1, 1))


@attack()
def changes_attributes_of_a_host_file(host):
    """Sets an extended attribute of a host's file."""
    call("setxattr", host.file.encode(), b"user.ling_attack", b"x", 1, 0)
    return "set"


@attack()
def watches_a_host_folder(host):
    """Watches the names that are opened in a folder of the host, by inotify."""
    descriptor = call("inotify_init1", 0)
    call("inotify_add_watch", descriptor, host.folder.encode(), 0x00000FFF)
    return "watched"


@attack()
def links_a_secret_into_the_box(host):
    """Makes a hard link in the box to a secret of the host, which would be read back as a file of the box."""
    os.link(host.secret, "hard")
    return read("hard")


@attack(left=("out", "out/secret.txt", "out/new"))
def leaves_a_link_to_a_folder(host):
    """Leaves a symbolic link to a folder of the host, for the host to read and write through."""
    os.symlink(host.folder, "out")


@attack(left=("out",))
def leaves_a_link_to_a_secret(host):
    """Leaves a symbolic link to a secret of the host, for the host to read."""
    os.symlink(host.secret, "out")


@attack(left=("a/b/out/secret.txt", "a/up"))
def leaves_links_that_climb(host):
    """Leaves relative links and a link by /proc/self/root, which lead out of the box on the host's side."""
    os.makedirs("a/b")
    os.symlink("../" * 40 + host.folder.lstrip("/"), "a/b/out")
    os.symlink(f"/proc/self/root/{host.secret}", "a/up")


@attack(left=("pipe",), unsafe="a naive reader of the box would wait for ever")
def leaves_a_pipe_that_blocks(host):
    """Leaves a FIFO that blocks whoever opens it."""
    os.mkfifo("pipe")


@attack(left=("sparse",), limits={"disk_bytes": 4 << 20})
def leaves_a_sparse_file(host):
    """Leaves a file whose length is a hundred times the limit of the disk, for the host to read into memory."""
    with open("sparse", "wb") as file:
        file.truncate(400 << 20)


@attack(left=("vast",), unsafe="a naive reader would need a TiB of memory")
def leaves_a_sparse_file_of_a_tebibyte(host):
    """Leaves a sparse file of a TiB for the host to read into memory."""
    with open("vast", "wb") as file:
        file.truncate(1 << 40)


@attack(works_as="root", unsafe="Python's own reader fails at the first such name; nothing is reached")
def leaves_odd_names(host):
    """Leaves names that are not UTF-8, with line ends, of one space, like options, and of the greatest length."""
    for name in (b"\xff\xfe", b"a\nb", b" ", b"-rf", b"--", b"n" * 255, b"\x1b[2J"):
        with open(name, "w", encoding="utf-8") as file:
            file.write("odd")


@attack(works_as="user")
def leaves_a_locked_folder(host):
    """Leaves a folder that its own owner may not list or remove from, with files in it."""
    os.makedirs("locked/inner")
    left_in("locked/inner", host)
    os.chmod("locked/inner", 0)
    os.chmod("locked", 0)


@attack(unsafe="a plain folder takes it: its removal would recurse as deep")
def leaves_a_deep_folder(host):
    """Leaves a chain of folders 3,000 deep, for a recursive removal or a listing to fail on."""
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")


@attack(works_as="root")
def writes_into_system_folders(host):
    """Leaves files in /usr, /etc, /bin and /; without a sandbox it takes the first away again."""
    errors = []
    for folder in ("/usr/bin", "/usr/lib", "/etc", "/bin", "/"):
        try:
            path = left_in(folder, host)
            if host.plain:
                os.unlink(path)
                return folder
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@attack(unsafe="/tmp and its like are for all to write; whether the host's own are reached is seen in the box")
def writes_into_shared_folders(host):
    """Leaves files in the host's /tmp, /var/tmp, /dev/shm and home."""
    errors = []
    for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run", host.home, host.current):
        try:
            left_in(folder, host)
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@attack(
    unsafe="the interpreter is the one that all programs here run on; a test that is killed would leave it poisoned"
)
def poisons_the_interpreter(host):
    """Leaves a .pth file and a sitecustomize in the packages of the interpreter, which later runs would execute."""
    errors = []
    for folder in {*host.packages, *(each for each in sys.path if each.startswith(("/", sys.prefix)))}:
        try:
            left_in(folder, host, suffix=".pth")
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@attack(works_as="root")
def overwrites_the_running_program(host):
    """Opens the programs of its parents and of itself for writing, as in runc's CVE-2019-5736."""
    errors = []
    for pid in ("1", str(os.getppid()), "self"):
        try:
            descriptor = os.open(f"/proc/{pid}/exe", os.O_PATH)
            with open(f"/proc/self/fd/{descriptor}", "r+b"):
                return pid
        except OSError as error:
            if error.errno == errno.ETXTBSY:
                return f"{pid}: would be written as soon as it ends"
            errors.append(error)
    raise errors[0]


@attack(ends=IS_KILLED, works_as="root")
def makes_device_nodes(host):
    """Makes device nodes of the host's disk and of the kernel's log, and opens them."""
    errors = []
    for name, kind, device in (("disk", stat.S_IFBLK, host.disk), ("log", stat.S_IFCHR, (1, 11))):
        try:
            os.mknod(name, kind | 0o600, os.makedev(*device))
            os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK))
            return name
        except OSError as error:
            errors.append(error)
    raise errors[0]


@attack(works_as="root")
def writes_to_the_kernel_log(host):
    """Writes a line into the kernel's log."""
    with open("/dev/kmsg", "w", encoding="utf-8") as file:
        file.write("written by an attack of ling_jax's tests\n")
    return "written"


@attack(works_as="root")
def opens_kernel_settings(host):
    """Opens files of /proc/sys for writing."""
    return opened("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger")


@attack(works_as="root")
def opens_device_settings(host):
    """Opens files of /sys and control groups for writing."""
    folders = ["/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/uevent_helper", "/sys/power/state"]
    return opened(*folders, "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/cgroup.procs")


def opened(*paths: str) -> str:
    """The first path that opens for writing; nothing is written."""
    errors = []
    for path in paths:
        try:
            os.close(os.open(path, os.O_WRONLY))
            return path
        except OSError as error:
            errors.append(error)
    raise errors[0]


@attack(works_as="root", capability=24)
def shields_its_child_from_the_memory_killer(host):
    """Lowers its score of the kernel's memory killer, so that others are killed in its place."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-500")
    return "lowered"


@attack()
def writes_to_a_host_terminal(host):
    """Writes escape sequences to a terminal of the host's user."""
    with open(host.terminal, "w", encoding="utf-8") as file:
        file.write("\x1b]0;attack\x07")
    return "written"


@attack(unsafe="a test has no terminal of its own")
def types_into_the_terminal(host):
    """Types a command into the terminal that it was started from (TIOCSTI)."""
    import fcntl
    import termios

    errors = []
    for path in ("/dev/tty", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/proc/self/fd/0"):
        try:
            with open(path, "rb") as file:
                fcntl.ioctl(file, termios.TIOCSTI, b"x")
                return path
        except OSError as error:
            errors.append(error)
    raise errors[0]


@attack()
def finds_inherited_descriptors(host):
    """Looks for descriptors that its parents left open."""
    found = []
    for number in range(3, 4096):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}") if os.fstat(number) else "")
        except OSError:
            continue
    if not found:
        raise RefusedError(errno.EBADF, "only the three are open")
    return ", ".join(found)


@attack(works_as="user")
def runs_a_setuid_program(host):
    """Starts a program with the setuid bit and looks whether its user changes."""
    if ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 1:  # PR_GET_NO_NEW_PRIVS
        raise RefusedError(errno.EPERM, "the bit is without effect")
    with subprocess.Popen(["passwd"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        try:
            for _ in range(1000):
                with open(f"/proc/{child.pid}/status", encoding="ascii", errors="replace") as file:
                    lines = file.read().splitlines()
                users = next(line for line in lines if line.startswith("Uid:")).split()[1:]
                if users[1] != str(os.getuid()):
                    return f"users {users}"
                if child.poll() is not None:
                    break
        finally:
            child.kill()
    return None


@attack()
def leaves_a_setgid_file(host):
    """Leaves a program with setuid and setgid bits where the host's user may run it."""
    with open(os.path.join(host.folder, f"ling_attack_{host.token}"), "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\n")
        os.fchmod(file.fileno(), 0o6755)


@attack()
def loads_a_library_into_others(host):
    """Writes a file where other programs of the host look for what to load at their start."""
    left_in(os.path.join(host.folder), host, suffix=".so")
