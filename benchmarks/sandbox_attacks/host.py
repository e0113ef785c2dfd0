"""The host that attacks aim at: files, a process, sockets and a terminal that are made for them."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from benchmarks.sandbox_attacks import observe, procfs

VICTIM = """
import ctypes, os, signal, sys
secret = ctypes.create_string_buffer(os.environ["LING_ATTACK_SECRET"].encode())
signal.signal(signal.SIGURG, lambda *_: os.write(1, b"signal "))
descriptor = os.open(sys.argv[2], os.O_RDONLY)
print(ctypes.addressof(secret), len(secret) - 1, descriptor, flush=True)
sys.stdin.read()
"""


class Host:
    """Sets up what attacks aim at; to be entered before the sandbox starts, so that secrets could be inherited.

    `scratch` is a folder in which the sandbox makes its temporary files, if nobody else does.
    """

    def __init__(self, scratch: Path | None = None):
        self.token, self.secret = secrets.token_hex(8), secrets.token_hex(16)
        self.scratch = scratch
        self.noted, self.came, self.written = 0, {}, b""
        self.clock = time.time() - time.monotonic()

    def __enter__(self) -> "Host":
        self.exits = contextlib.ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="host_of_attacks_", dir="/tmp"))
        self.exits.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._fill_folder()
        os.environ["LING_ATTACK_SECRET"] = self.secret
        self.exits.callback(os.environ.pop, "LING_ATTACK_SECRET", None)
        inherited = os.open(self.folder / "secret.txt", os.O_RDONLY)
        os.set_inheritable(inherited, True)
        self.exits.callback(os.close, inherited)
        self._listen()
        self.terminal, slave = os.openpty()
        self.terminal_name = os.ttyname(slave)
        os.set_blocking(self.terminal, False)
        for each in (self.terminal, slave):
            self.exits.callback(os.close, each)
        self.victim = None
        self.exits.callback(self._end_victim)
        self._start_victim()
        return self

    def __exit__(self, *_) -> None:
        self.sweep()
        self.exits.close()

    def _fill_folder(self) -> None:
        for name, text in (("secret.txt", self.secret), ("file.txt", "a file of the host\n")):
            path = self.folder / name
            path.unlink(missing_ok=True)
            path.write_text(text)
            path.chmod(0o600)

    def _listen(self) -> None:
        names = {"path": str(self.folder / "socket"), "abstract": f"\0host_{self.token}"}
        self.sockets = {
            "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "path": (socket.AF_UNIX, socket.SOCK_STREAM, names["path"]),
            "path_datagram": (socket.AF_UNIX, socket.SOCK_DGRAM, names["path"] + "_datagram"),
            "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, names["abstract"]),
            "abstract_datagram": (socket.AF_UNIX, socket.SOCK_DGRAM, names["abstract"] + "_datagram"),
        }
        if socket.has_ipv6:
            self.sockets["tcp6"] = (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))
        self.listening: dict[str, socket.socket] = {}
        for name, (family, kind, address) in self.sockets.items():
            listener = self.exits.enter_context(socket.socket(family, kind))
            listener.setblocking(False)
            with contextlib.suppress(OSError):  # a machine may lack ::1
                listener.bind(address)
                if kind == socket.SOCK_STREAM:
                    listener.listen(50)
                self.listening[name] = listener

    def _start_victim(self) -> None:
        command = [sys.executable, "-I", "-c", VICTIM, self.secret, str(self.folder / "secret.txt")]
        self.noted = 0
        self.victim = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.victim_facts = [int(word) for word in self.victim.stdout.readline().split()]
        os.set_blocking(self.victim.stdout.fileno(), False)

    def heal(self) -> None:
        """Puts right what an attack has changed."""
        self.sweep()
        self._fill_folder()
        self._end_victim()
        self._start_victim()

    def sweep(self) -> None:
        """Kills processes and removes files that attacks have left."""
        for pid in procfs.marked(self.token):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for path in observe.left_behind(self):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _end_victim(self) -> None:
        self.victim.kill()
        self.victim.communicate()

    def facts(self, limits: dict, plain: bool) -> dict:
        """What an attack knows of the host: more than a real attacker would, but no secret."""
        ports = {name: each.getsockname()[1] for name, each in self.listening.items() if name in ("tcp", "tcp6", "udp")}
        address, size, descriptor = self.victim_facts
        disk = os.stat("/").st_dev
        return {
            "token": self.token,
            "plain": plain,
            "limits": limits,
            "folder": str(self.folder),
            "secret": str(self.folder / "secret.txt"),
            "file": str(self.folder / "file.txt"),
            "home": str(Path.home()),
            "current": os.getcwd(),
            "packages": sorted({sysconfig.get_path("purelib"), os.path.dirname(os.__file__)}),
            "terminal": self.terminal_name,
            "disk": [os.major(disk), os.minor(disk)],
            "test": os.getpid(),
            "servers": sorted(procfs.descendants(os.getpid()) - {self.victim.pid}),
            "victim": self.victim.pid,
            "victim_address": address,
            "victim_size": size,
            "victim_fd": descriptor,
            "tcp6": 1,
            **ports,
            "path_socket": str(self.folder / "socket"),
            "path_datagram": str(self.folder / "socket_datagram"),
            "abstract": f"host_{self.token}",
            "abstract_datagram": f"host_{self.token}_datagram",
        }
