"""Before JAX starts: which of several processes this one is, and whether all are there and about to do the same.

A process is called a host here, although several may share a machine. Host 0 listens at the coordinator's address and
the others ask there until all are known; then JAX's own service takes the port. JAX alone would end a run that lacks a
host without saying which.

A message is a line of at most 1 MB: an HMAC and a JSON object. Its key is LING_JAX_TOKEN, or the launcher's number of
the job, so that other jobs, and with a secret token other people, cannot take part.
"""

import asyncio
import contextlib
import hashlib
import hmac
import importlib.metadata
import ipaddress
import json
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ling_jax
from ling_jax.files import parse_object
from ling_jax.messages import one_line
from ling_jax.train.config import flatten

PACKAGES = ("ling_jax", "pallas_kernels", "launch")  # whose sources are the code of a run
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
ASK_SECONDS = 0.5  # between two questions of a host to host 0
CLIENT_SECONDS = 10  # for a client to send its line, and to read the answer
MAX_LINE_BYTES = 2**20  # our choice; all files and fields of a run take 40 kB
TOKEN = "LING_JAX_TOKEN"  # of the environment
JOB_IDS = ("SLURM_JOB_ID", "PMIX_NAMESPACE")
LAST_SECONDS = 10  # for those that came to ask once more, when the outcome is known
MOST_TOLD = 8  # differences in one message
THEIRS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
)  # what another process may cause: not there yet, a lost connection, no message


class ProcessInfo(NamedTuple):
    """Of a process among those that train one model."""

    coordinator: str  # address:port of host 0
    count: int
    index: int
    devices: list[int] | None = None  # of this machine's, where processes share it; None: all


def find_process(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> ProcessInfo | None:
    """This process's place; None where it is alone.

    Known from what is given, else from JAX's variables of the environment, else from the cluster's launcher: SLURM,
    Open MPI and TPU pods. Raises ValueError where one part is known and another is not, or a variable is no number.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    count = _variable("JAX_NUM_PROCESSES", int) if count is None else count
    index = _variable("JAX_PROCESS_ID", int) if index is None else index
    devices = _variable("JAX_LOCAL_DEVICE_IDS", _whole_numbers)
    if None in (coordinator, count, index) and (cluster := _cluster()):
        port = os.environ.get("JAX_COORDINATOR_PORT")
        count = cluster.get_process_count() if count is None else count
        index = cluster.get_process_id() if index is None else index
        if count > 1 and coordinator is None:
            coordinator = cluster.get_coordinator_address(timeout_secs=60, override_coordinator_port=port)
        local = cluster.get_local_process_id()
        devices = [local] if devices is None and local is not None else devices
    if count == 1 or (coordinator is None and count is None and index is None):
        return None
    known = {"coordinator": coordinator, "num_hosts": count, "host": index}
    if missing := [name for name, value in known.items() if value is None]:
        raise ValueError(f"of coordinator, num_hosts and host, {' and '.join(missing)} is missing; give all three")
    _check_process(coordinator, count, index)
    return ProcessInfo(coordinator, count, index, devices)


def _variable(name: str, parse: Callable[[str], Any]) -> Any:
    """Of the environment; None where it is not set or empty."""
    text = os.environ.get(name)
    try:
        return parse(text) if text else None
    except ValueError:
        raise ValueError(
            f"the environment has {name}={text!r}; expected a whole number, or several behind commas for devices"
        ) from None


def _whole_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _cluster():
    """What JAX knows about the launcher of this process; None: nothing."""
    # JAX has no public name for these, and to ask it for all (Kubernetes too) warns or fails in pods that are no job.
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster, OmpiCluster, SlurmCluster

    clusters = (GkeTpuCluster, GceTpuCluster, SlurmCluster, OmpiCluster)
    return next((cluster for cluster in clusters if cluster.is_env_present()), None)


def _check_process(coordinator: str, count: int, index: int) -> None:
    address, _, port = coordinator.rpartition(":")
    if not address or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator is {coordinator!r}; expected address:port of host 0, such as node0:8476")
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"host is {index} and num_hosts {count}; expected 0 <= host < num_hosts")


def facts(config: Any, **more: Any) -> dict[str, str]:
    """What must be the same on all hosts: every field of the config, every source file, the libraries' versions."""
    found = {f"config.{name}": repr(value) for name, value in flatten(config).items()}
    found |= {name: repr(value) for name, value in more.items()}
    root = Path(ling_jax.__file__).parents[1]
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        found[str(path.relative_to(root))] = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return (
        found | {name: importlib.metadata.version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    )


def differences(first: Mapping[str, str], other: Mapping[str, str], name: str) -> str:
    """The facts in which a host differs from host 0, a line each; "" if there are none."""
    keys = [key for key in {**first, **other} if first.get(key) != other.get(key)]
    lines = [f"{key}: {first.get(key, 'missing')} on host 0, {other.get(key, 'missing')} on {name}" for key in keys]
    left = [f"and {len(lines) - MOST_TOLD} more"] if len(lines) > MOST_TOLD else []
    return "\n  ".join(lines[:MOST_TOLD] + left)


def own_name(index: int) -> str:
    return f"host {index} ({socket.gethostname()}, process {os.getpid()})"


def rendezvous(process: ProcessInfo, own_facts: Mapping[str, str], seconds: float) -> tuple[str, ...]:
    """The names of all hosts, in order, when all are there and have the facts of host 0.

    Raises ValueError, on all hosts that came, naming those that did not come in so many seconds or what differs.
    """
    if process.index:
        message = {"host": process.index, "name": own_name(process.index), "facts": dict(own_facts)}
        answer = _ask(process, message, seconds)
    else:
        answer = asyncio.run(_Register(process, own_facts).serve(seconds))
    if answer["error"]:
        raise ValueError(answer["error"])
    return tuple(answer["names"])


def listening_addresses(coordinator: str) -> list[str]:
    """The addresses of this machine at which host 0 listens: those that the coordinator's name stands for.

    [] means all: the name stands for addresses that this machine does not have (it is behind another one), or for the
    machine itself alone where others ask for it by name (/etc/hosts has 127.0.1.1 then).
    """
    name = coordinator.rpartition(":")[0].strip("[]")
    try:
        found = [ipaddress.ip_address(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except (OSError, ValueError):
        return []
    means_itself = name == "localhost" or name in map(str, found)
    return sorted({str(ip) for ip in found if (means_itself or not ip.is_loopback) and _is_ours(str(ip))})


def _is_ours(address: str) -> bool:
    """Whether this machine has an address."""
    try:
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
            return True
    except OSError:
        return False


class _Register:
    """Host 0's side: who has come, and what they are told."""

    def __init__(self, process: ProcessInfo, own_facts: Mapping[str, str]):
        self.process, self.facts = process, own_facts
        self.names, self.errors = {0: own_name(0)}, []
        self.came, self.told = {own_name(0)}, {own_name(0)}
        self.answer: dict[str, Any] | None = None

    async def serve(self, seconds: float) -> dict[str, Any]:
        """Answers until all are there or the time is over, and then until all that came know the outcome."""
        end = time.monotonic() + seconds
        server = await self._listen()
        while len(self.names) < self.process.count and time.monotonic() < end:
            await asyncio.sleep(ASK_SECONDS / 10)
        self.answer, end = self._outcome(seconds), time.monotonic() + LAST_SECONDS
        while self.told != self.came and time.monotonic() < end:
            await asyncio.sleep(ASK_SECONDS / 10)
        server.close()  # without waiting for clients that are silent
        return self.answer

    async def _listen(self) -> asyncio.Server:
        coordinator = self.process.coordinator
        port, addresses = int(coordinator.rpartition(":")[2]), listening_addresses(coordinator)
        try:
            # asyncio reads all clients at once: a slow one holds up nobody.
            return await asyncio.start_server(self._meet, addresses or None, port, limit=MAX_LINE_BYTES, backlog=1024)
        except OSError as error:
            raise ValueError(
                f"host 0 cannot listen at port {port} of the coordinator {coordinator} "
                f"({os.strerror(error.errno)}); name a port that is free, and one process alone as host 0"
            ) from None

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, which may be anybody: whatever it does ends nothing but its own connection."""
        with contextlib.suppress(*THEIRS, asyncio.CancelledError):  # the server ends
            name = self._note(opened(await asyncio.wait_for(reader.readline(), CLIENT_SECONDS), "what a host sent"))
            answer = self.answer  # it may come while this client reads
            writer.write(sealed({"answer": answer}))
            await asyncio.wait_for(writer.drain(), CLIENT_SECONDS)
            if answer is not None:
                self.told.add(name)
        writer.close()

    def _note(self, message: Mapping[str, Any]) -> str:
        """Notes a host's message; returns the host's name. Raises ValueError or KeyError where it is none."""
        index, name, other = message["host"], message["name"], message["facts"]
        if type(index) is not int or type(name) is not str or type(other) is not dict:
            raise ValueError("no message of a host")
        name = one_line(name)
        self.came.add(name)
        known = self.names.setdefault(index, name)
        if known != name:
            self.errors.append(f"two processes are host {index}: {known} and {name}; give each a number of its own")
        elif not 0 < index < self.process.count:
            self.errors.append(f"{name} is none of {self.process.count} hosts; give all hosts the same num_hosts")
        elif told := differences(self.facts, other, name):
            self.errors.append(f"{name} would not do what host 0 does; make these the same:\n  {told}")
        return name

    def _outcome(self, seconds: float) -> dict[str, Any]:
        missing = [f"host {index}" for index in range(self.process.count) if index not in self.names]
        error = self.errors[0] if self.errors else ""
        if missing and not error:
            error = (
                f"{', '.join(missing)} of {self.process.count} did not come to {self.process.coordinator} in "
                f"{seconds:g} seconds; start the same command on all hosts, with the same {TOKEN} or none, or give "
                "them more time (--host_timeout)"
            )
        return {"names": [self.names.get(index, "") for index in range(self.process.count)], "error": error}


def _ask(process: ProcessInfo, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """A host's side: asks until it is told the outcome, or for so many seconds nobody answers."""
    address, _, port = process.coordinator.rpartition(":")
    where = (address.strip("[]"), int(port))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(*THEIRS), socket.create_connection(where, timeout=CLIENT_SECONDS) as server:
            server.sendall(sealed(message))
            answer, end = opened(_read_line(server), "what host 0 sent")["answer"], time.monotonic() + seconds
            if answer is not None:
                return answer
        time.sleep(ASK_SECONDS)
    raise ValueError(
        f"host 0 of {process.count} did not answer {own_name(process.index)} at {process.coordinator} in {seconds:g} "
        f"seconds; start the same command there, check the address and {TOKEN}, or give it more time (--host_timeout)"
    )


def _read_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        return file.readline(MAX_LINE_BYTES)


def sealed(message: Mapping[str, Any]) -> bytes:
    """A line for another host: the message as JSON behind its HMAC, whose key is the token of this job."""
    text = json.dumps(message).encode()
    return _sum(text) + b" " + text + b"\n"


def opened(line: bytes, where: str) -> dict[str, Any]:
    """The message of a line. Raises ValueError where it is no line of a host with this job's token."""
    found, _, text = line.rstrip(b"\n").partition(b" ")
    if not hmac.compare_digest(found, _sum(text)):
        raise ValueError(f"{where} is not of this job")
    return parse_object(text, where)


def _sum(text: bytes) -> bytes:
    return hmac.new(_token(), text, hashlib.sha256).hexdigest().encode()


def _token() -> bytes:
    """What the hosts of a job share: a secret, else the launcher's number of the job, else nothing."""
    return next((value.encode() for name in (TOKEN, *JOB_IDS) if (value := os.environ.get(name))), b"")
