"""T1: docker, also on macOS. A box is a container that runs the program of a box (init.py) as its first process."""

import os
import shutil
import subprocess
import uuid

from ling_jax.sandbox import init, places
from ling_jax.sandbox.contract import Limits, SandboxError

IMAGE = "python:3.12-slim"  # our choice: it has Python and bash; it must be there, and is not pulled
SECONDS = 20.0  # our choice: for an answer of docker
DISK = Limits()  # of all boxes: docker cannot change it in a container that runs
LACKS = (
    "containers share the kernel, under docker's own filter of system calls",
    f"the work folder has {DISK.disk_bytes >> 20} MiB and {DISK.files} files whatever the limits say",
)


class Docker:
    name, signals, same_python = "T1", "all", False
    advice = ""
    lacks = LACKS

    def __init__(self):
        if not shutil.which("docker"):
            raise SandboxError("T1: there is no docker")
        answer = asked("version", "--format", "{{.Server.Version}}")
        if answer.returncode:
            raise SandboxError(f"T1: docker has no running daemon ({first_line(answer.stderr)}): start it")
        if asked("image", "inspect", IMAGE).returncode:
            raise SandboxError(f"T1: docker has no image {IMAGE}: docker pull {IMAGE}")

    def start(self, channel: int, command: list[str]) -> places.Place:
        name = f"ling-sandbox-{uuid.uuid4().hex}"
        errors, stderr = places.error_pipe()
        try:
            options = {"stdin": channel, "stdout": channel, "stderr": stderr}
            boot = ["python3", "-I", "-S", "-c", init.BOOT, "0", "1"]
            process = subprocess.Popen(["docker", "run", *arguments(name), IMAGE, *boot], **options)
        finally:
            os.close(stderr)
        environment = places.environment("/work", "/tmp", "/usr/local")
        return places.Place(process, process.pid, "/work", environment, errors, name)

    def settle(self, place: places.Place) -> None:
        pass

    def limit(self, place: places.Place, limits: Limits) -> dict[str, int]:
        memory, pids = str(limits.memory_bytes + limits.disk_bytes), str(limits.processes + 1)
        answer = asked("update", "--memory", memory, "--memory-swap", memory, "--pids-limit", pids, place.folder)
        if answer.returncode:
            raise SandboxError(f"T1: docker cannot limit a container: {first_line(answer.stderr)}")
        return {
            name: value for name, value in places.process_limits(limits, grouped=True).items() if name != "RLIMIT_NPROC"
        }

    def remove(self, place: places.Place) -> None:
        os.close(place.errors)
        asked("rm", "--force", place.folder)

    def end(self) -> None:
        pass


def arguments(name: str) -> list[str]:
    """The options of `docker run`."""
    tmpfs = f"rw,exec,nosuid,nodev,mode=0777,size={DISK.disk_bytes},nr_inodes={DISK.files}"
    return [
        "--interactive", "--rm", "--name", name, "--network", "none", "--ipc", "none", "--read-only",
        "--cap-drop", "ALL",
        "--security-opt", "no-new-privileges", "--user", "65534:65534", "--workdir", "/work",
        "--tmpfs", f"/work:{tmpfs}", "--tmpfs", f"/tmp:{tmpfs}",
    ]  # fmt: skip


def asked(*command: str) -> subprocess.CompletedProcess:
    """What docker answers. Raises SandboxError where it takes too long."""
    try:
        return subprocess.run(["docker", *command], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise SandboxError(f"T1: docker {command[0]} has not ended after {SECONDS:g} s") from None


def first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]
