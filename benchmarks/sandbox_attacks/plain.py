"""The absence of a sandbox, in a sandbox's clothes: it shows that attacks work where nothing stops them."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ling_jax.sandbox.contract import MIB, Limits, Result

OVERRUN = 2.5  # seconds that a command may run past its limit before it is killed after all


class PlainBox:
    """A folder, read and written without care."""

    def __init__(self, files: Mapping[str, bytes], limits: Limits):
        self.folder = Path(tempfile.mkdtemp(prefix="plain_box_"))
        self.limits = limits
        self.write(files)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Result:
        """Runs a command below a shell, which is the parent that attacks reach for."""
        start = time.monotonic()
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin)
            given.seek(0)
            shell = [
                "sh",
                "-c",
                '"$@"; exit $?',
                "sh",
                *(sys.executable if word == "python3" else word for word in argv),
            ]
            streams = {"stdin": given, "stdout": out, "stderr": err, "close_fds": False, "start_new_session": True}
            child = subprocess.Popen(
                shell, cwd=self.folder, env={**os.environ, **(env or {})}, preexec_fn=careful, **streams
            )
            try:
                code, status = child.wait(self.limits.seconds + OVERRUN), "exited"
            except subprocess.TimeoutExpired:
                code, status = None, "timeout"
            seconds = time.monotonic() - start
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGCONT)
            if status == "timeout":
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read())
        if code is not None and (code < 0 or code > 128):
            code, status = None, "killed"
        return Result(status, code, texts[0], texts[1], False, seconds)

    def write(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def read(self, path: str) -> bytes | None:
        return (self.folder / path).read_bytes() if (self.folder / path).exists() else None

    def files(self) -> dict[str, bytes]:
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            subprocess.run(["chmod", "-R", "u+rwx", self.folder], check=False)
            shutil.rmtree(self.folder)
            raise OSError("the folder could not be removed at first")


class PlainSandbox:
    """Has `open` and `run` as a `Sandbox` has."""

    tier = "none"

    def open(self, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> PlainBox:
        return PlainBox(files or {}, limits or Limits())

    def run(self, argv: Sequence[str], *, files: Mapping[str, bytes] | None = None) -> Result:
        box = self.open(files)
        try:
            return box.run(argv)
        finally:
            box.close()


def careful() -> None:
    """Limits far above those of attacks, so that a mistake in one does not harm the machine."""
    resource.setrlimit(resource.RLIMIT_AS, (4096 * MIB, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 * MIB, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
