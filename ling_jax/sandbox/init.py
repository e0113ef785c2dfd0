"""The program inside a box: it runs commands one after another, and reads and writes files between them.

The spawn server sends the code of this file through the channel; the file itself is not there inside the box. It
imports only what starts fast. Requests are marshalled lists, since the server is trusted; replies are plain bytes,
since this program lives beside foreign code, so that the server must treat them as data of bounded size.

In T3 the process is PID 1 of a namespace.
"""

import os
import select
import stat
import time
from _signal import SIG_DFL, SIGCHLD, SIGKILL, SIGPIPE, set_wakeup_fd, signal

# Receives the code that `exec` runs. `marshal` reads code of the same interpreter, and source text for another one.
BOOT = """
import marshal, os, sys
channel, out = int(sys.argv[1]), int(sys.argv[-1])
def take(count):
    parts = []
    while count:
        parts.append(os.read(channel, count))
        if not parts[-1]:
            os._exit(0)
        count -= len(parts[-1])
    return b"".join(parts)
exec(marshal.loads(take(int.from_bytes(take(4), "big"))), globals())
serve(channel, out, take, *marshal.loads(take(int.from_bytes(take(4), "big"))), globals().get("confine"))
"""
CHUNK = 1 << 16
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
EXITED, TIMEOUT, SIGNALLED = 0, 1, 2


class Surroundings:
    """What commands of this box need to know."""

    def __init__(self, channel, signals, confine):
        self.channel, self.signals, self.confine = channel, signals, confine
        self.wakeup = wake_on_exits()


def serve(channel, out, take, work, signals, confine):
    """Answers requests until the channel closes. `signals` is "all" where signal -1 reaches this box alone."""
    import marshal

    os.chdir(work)
    hide()
    here = Surroundings(channel, signals, confine)
    operations = {"run": run, "write": write, "read": read, "files": files}
    while True:
        name, *arguments = marshal.loads(take(int.from_bytes(take(4), "big")))
        try:
            size, parts = operations[name](*arguments, *([here] if name == "run" else ()))
            send(out, (size + 1).to_bytes(4, "big") + b"\0")
        except OSError as error:
            size, parts = refusal(1, f"{type(error).__name__}: {error.strerror}")
            send(out, size.to_bytes(4, "big"))
        except ValueError as error:
            size, parts = refusal(2, str(error))
            send(out, size.to_bytes(4, "big"))
        for part in parts:
            send(out, part)
        os.chdir(work)


def refusal(kind, text):
    """The size and the parts of a reply that is an error."""
    return whole(bytes((kind,)) + text.encode("utf-8", "surrogateescape"))


def whole(data):
    """The size and the parts of a reply that is in memory."""
    return len(data), [data]


def hide():
    """Makes this process unreadable for others of its user, and the parent of the orphans below it."""
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def prctl(option, value):
    """Does nothing outside Linux."""
    import ctypes

    call = getattr(ctypes.CDLL(None), "prctl", None)
    if call:
        call(option, ctypes.c_ulong(value), 0, 0, 0)


def send(channel, data):
    view = memoryview(data)
    while view:
        view = view[os.write(channel, view) :]


def wake_on_exits():
    """A pipe that becomes readable when a child exits."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal(SIGCHLD, note_exit)
    return reading


def note_exit(number, frame):
    """The handler of SIGCHLD: the wake-up pipe says it all."""


def run(argv, stdin, seconds, env, output_bytes, rlimits, here):
    """Runs a command, then kills what is left; returns its end, its code, whether output was dropped, and output."""
    begun = time.monotonic()
    stdin_read, stdin_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    pid = os.fork()
    if not pid:
        become(argv, env, rlimits, (stdin_read, out_write, err_write), here.confine)
    for descriptor in (stdin_read, out_write, err_write):
        os.close(descriptor)
    for descriptor in (stdin_write, out_read, err_read):
        os.set_blocking(descriptor, False)
    output = Output(out_read, err_read, output_bytes)
    status = watch(pid, stdin_write, memoryview(stdin), output, begun + seconds, here)
    timed_out = status is None
    last = kill_everyone(here.signals, pid)
    status = last if timed_out else status
    output.drain()
    code = os.waitstatus_to_exitcode(status) if status is not None else -SIGKILL
    ending = TIMEOUT if timed_out else SIGNALLED if code < 0 else EXITED
    out, err = map(bytes, output.kept)
    return whole(bytes((ending, abs(code) & 255, output.dropped)) + len(out).to_bytes(4, "big") + out + err)


def become(argv, env, rlimits, descriptors, confine):
    """Turns the forked child into the command. Does not return."""
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, 1 << 16)
        os.umask(0o022)
        set_wakeup_fd(-1)
        signal(SIGCHLD, SIG_DFL)
        signal(SIGPIPE, SIG_DFL)
        limit(rlimits)
        if confine:
            confine()
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode("utf-8", "surrogateescape"))
    except BaseException as error:
        os.write(2, f"{argv[0]}: {type(error).__name__}: {error}\n".encode("utf-8", "surrogateescape"))
    finally:
        os._exit(127)


def limit(rlimits):
    """Sets hard and soft limits; the kernel's out-of-memory killer takes the command before this program."""
    import resource

    prctl(PR_SET_DUMPABLE, 1)  # the file belongs to root otherwise; no other foreign process runs yet
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"1000")
        os.close(descriptor)
    except OSError:
        pass  # T2 has no /proc: there the commands inherit what the server has set
    for name, value in rlimits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


class Output:
    """What a command has written to stdout and stderr, up to a limit each."""

    def __init__(self, out, err, limit):
        self.open = {out: 0, err: 1}
        self.kept, self.limit, self.dropped = (bytearray(), bytearray()), limit, False

    def take(self, descriptor):
        """Reads once. Closes a pipe at its end; returns whether there may be more."""
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        kept = self.kept[self.open[descriptor]]
        room = self.limit - len(kept)
        kept += data[:room]
        self.dropped = self.dropped or len(data) > room
        if not data:
            del self.open[descriptor]
            os.close(descriptor)
        return bool(data)

    def drain(self):
        """Takes what the pipes still hold, without waiting for their end, and closes them."""
        for descriptor in list(self.open):
            for _ in range(1024):  # a pipe holds at most a few MiB: no process of the box writes any more
                if not self.take(descriptor):
                    break
            if descriptor in self.open:
                os.close(descriptor)


def watch(pid, stdin_write, stdin, output, deadline, here):
    """Feeds stdin and reads output until the command has exited; returns its wait status, None after the deadline."""
    poll = select.poll()
    poll.register(here.wakeup, select.POLLIN)
    poll.register(here.channel, 0)  # its hang-up alone
    for descriptor in output.open:
        poll.register(descriptor, select.POLLIN)
    poll.register(stdin_write, select.POLLOUT)
    status = None
    while status is None:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        for descriptor, _ in poll.poll(min(left, 3600) * 1000 + 1):
            if descriptor == here.wakeup:
                os.read(here.wakeup, 4096)
                status, _ = reap(pid, status)
            elif descriptor == here.channel:
                kill_everyone(here.signals, pid)
                os._exit(0)
            elif descriptor == stdin_write:
                stdin = feed(stdin_write, stdin)
                if not stdin:
                    poll.unregister(stdin_write)
                    os.close(stdin_write)
                    stdin_write = -1
            else:
                output.take(descriptor)
                if descriptor not in output.open:
                    poll.unregister(descriptor)
    if stdin_write >= 0:
        os.close(stdin_write)
    return status


def feed(descriptor, data):
    """Writes once; returns the rest, which is empty where nobody reads any more."""
    try:
        return data[os.write(descriptor, data[:CHUNK]) :]
    except BlockingIOError:
        return data
    except OSError:
        return data[:0]


def reap(wanted, status=None):
    """Reaps all exited children, orphans among them; returns the wait status of `wanted`, and whether any are left."""
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if not pid:
            return status, True
        if pid == wanted and not os.WIFSTOPPED(ended):  # T0 lets a command ask to be traced
            status = ended


def kill_everyone(signals, wanted):
    """Kills until no child is left: orphans are this process's children. Returns the status of `wanted`."""
    status = None
    while True:
        if signals == "all" and sees_only_the_box():
            try:  # noqa: SIM105  # contextlib takes too long to import
                os.kill(-1, SIGKILL)
            except ProcessLookupError:
                pass
        else:
            for pid in descendants(os.getpid()):
                kill_one(pid)
            if wanted > 0:
                kill_one(-wanted)  # its process group, where there is no /proc
        status, left = reap(wanted, status)
        if not left:
            return status
        time.sleep(0.0005)


def sees_only_the_box():
    """Whether signals cannot leave the box: this is PID 1, or the parent cannot be signalled."""
    if os.getpid() == 1:
        return True
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return False


def kill_one(pid):
    try:  # noqa: SIM105
        os.kill(pid, SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def descendants(root):
    """The pids of all processes below `root`, zombies excepted."""
    children = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        children.setdefault(int(parent), []).append((int(name), state))
    found, ahead = [], [root]
    while ahead:
        for pid, state in children.get(ahead.pop(), ()):
            ahead.append(pid)
            if state not in (b"Z", b"X"):
                found.append(pid)
    return found


def inside(path):
    """A path below the work folder, checked after its links are resolved. No foreign process runs meanwhile."""
    work = os.getcwd()
    real = os.path.realpath(os.path.join(work, path))
    if not real.startswith(work + "/"):
        raise ValueError(f"{path!r} leads out of the box's folder")
    return real


def write(pieces):
    """Writes pieces of files: (path, whether it follows an earlier piece, the bytes)."""
    for path, follows, data in pieces:
        real = inside(path)
        os.makedirs(os.path.dirname(real), exist_ok=True)
        if not stat.S_ISREG(mode_of(real) or stat.S_IFREG):
            raise ValueError(f"{path!r} is in the box, and is no regular file")
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if follows else os.O_TRUNC) | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(real, flags, 0o644)
        try:
            send(descriptor, data)
        finally:
            os.close(descriptor)
    return whole(b"")


def open_folders(path):
    """Makes the folders of a path passable again that foreign code has closed."""
    folder = ""
    for name in path.split("/")[:-1]:
        folder = os.path.join(folder, name)
        if name != ".." and stat.S_ISDIR(mode_of(folder)) and not os.access(folder, os.X_OK):
            os.chmod(folder, 0o700)


def mode_of(path):
    try:
        return os.lstat(path).st_mode
    except (OSError, ValueError):
        return 0


def read(path, limit):
    """A byte 1 and the content of a regular file of at most `limit` bytes; a byte 0 where there is none."""
    try:
        inside(path)
        open_folders(path)
        real = inside(path)  # again: links in closed folders are seen now
    except ValueError:
        return whole(b"\0")
    size = size_of(real)
    if size is None or size > limit:
        return whole(b"\0")
    return 1 + size, content_of(real, size, b"\1")


def size_of(path):
    """A regular file's size; None where there is none that can be read."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            return None
        if not os.access(path, os.R_OK):
            os.chmod(path, 0o600)
        return found.st_size if os.access(path, os.R_OK) else None
    except (OSError, ValueError):
        return None


def content_of(path, size, head):
    """A header, then a file's bytes in parts: memory may be scarce. No foreign process runs meanwhile."""
    yield head
    with open(path, "rb", buffering=0, opener=open_plainly) as file:
        while size:
            data = file.read(min(size, 1 << 20)) or bytes(min(size, 1 << 20))
            size -= len(data)
            yield data


def open_plainly(path, flags):
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def files(limit, budget):
    """All regular files, each as lengths and bytes of path and content; those beyond the budgets are left out."""
    found, folders, size = [], [b""], 0
    work = os.fsencode(os.getcwd())
    while folders:
        folder = folders.pop()
        for name in sorted(names_in(os.path.join(work, folder))):
            path = os.path.join(folder, name)
            full = os.path.join(work, path)
            if stat.S_ISDIR(mode_of(full)):
                folders.append(path)
                continue
            length = size_of(full)
            if length is None or length > limit or len(found) >= budget:
                continue
            limit -= length
            head = len(path).to_bytes(4, "big") + path + length.to_bytes(4, "big")
            size += len(head) + length
            found.append((full, length, head))
    return size, (part for each in found for part in content_of(*each))


def names_in(folder):
    """The names in a folder that foreign code may have closed; none where the path is too long for the kernel."""
    try:
        try:
            return os.listdir(folder)
        except PermissionError:
            os.chmod(folder, 0o700)
            return os.listdir(folder)
    except OSError:
        return []
