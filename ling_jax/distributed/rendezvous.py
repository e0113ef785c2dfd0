"""The rendezvous of several processes before JAX starts: all must be there, and about to run the same program.

A process is called a host here, although several may share a machine. Host 0 listens at the coordinator's address, and
the others ask there until all have arrived. Then JAX's own service takes the port. JAX alone would end a run that lacks
a host without naming it.

A message is a line of at most 1 MB: an HMAC and a JSON object. The key of the HMAC is LING_JAX_TOKEN, or else the
launcher's job number, so that other jobs cannot take part, and with a secret token nobody else can.
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
from ling_jax.config_dicts import flatten
from ling_jax.files import parse_object
from ling_jax.messages import one_line

PACKAGES = ("ling_jax", "pallas_kernels", "launch")  # the sources that must be the same on all hosts
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
ASK_SECONDS = 0.5  # between two requests of a host to host 0
CLIENT_SECONDS = 10  # for a client to send its line, and to read the answer
MAX_LINE_BYTES = 2**20  # our choice; all files and fields of a run take 40 kB
TOKEN = "LING_JAX_TOKEN"  # environment variable
JOB_IDS = ("SLURM_JOB_ID", "PMIX_NAMESPACE")
LAST_SECONDS = 10  # for the hosts to ask once more when the outcome is known
MAX_DIFFERENCES = 8  # in one message
# Errors that another process may cause: it is not there yet, drops the connection, or sends no message.
PEER_ERRORS = (OSError, ValueError, TypeError, KeyError, OverflowError)


class ProcessInfo(NamedTuple):
    """One of the processes that train a model together."""

    coordinator: str  # address:port of host 0
    count: int  # number of processes
    index: int  # number of this process, from 0
    devices: list[int] | None = None  # local devices of this process where several share a machine; None: all


def find_process(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> ProcessInfo | None:
    """This process's place; None where it is alone.

    Each part comes from the arguments, else from JAX's environment variables, else from the cluster's launcher (SLURM,
    Open MPI, TPU pods). Raises ValueError where only some parts are known, or a variable is no number.
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
    """The parsed value of an environment variable; None where it is unset or empty."""
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
    """JAX's description of this process's launcher; None where it finds none."""
    # JAX has no public name for these. Its detection of every launcher warns or fails in Kubernetes pods without a job.
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
    """{name: value} that must be equal on all hosts: config fields, digests of sources, versions of libraries."""
    found = {f"config.{name}": repr(value) for name, value in flatten(config).items()}
    found |= {name: repr(value) for name, value in more.items()}
    root = Path(ling_jax.__file__).parents[1]
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        found[str(path.relative_to(root))] = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return (
        found | {name: importlib.metadata.version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    )


def differences(first: Mapping[str, str], other: Mapping[str, str], name: str) -> str:
    """A line for each fact in which the host `name` differs from host 0; "" if there is none."""
    keys = [key for key in {**first, **other} if first.get(key) != other.get(key)]
    lines = [f"{key}: {first.get(key, 'missing')} on host 0, {other.get(key, 'missing')} on {name}" for key in keys]
    left = [f"and {len(lines) - MAX_DIFFERENCES} more"] if len(lines) > MAX_DIFFERENCES else []
    return "\n  ".join(lines[:MAX_DIFFERENCES] + left)


def own_name(index: int) -> str:
    """The name of this process in messages: its number, machine and process id."""
    return f"host {index} ({socket.gethostname()}, process {os.getpid()})"


def rendezvous(process: ProcessInfo, own_facts: Mapping[str, str], seconds: float) -> tuple[str, ...]:
    """The names of all hosts, in order; returns when all have arrived with the facts of host 0.

    Raises ValueError on all hosts that have arrived; it names those that did not in `seconds`, or the differences.
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
    """The addresses of this machine at which host 0 listens: those that the coordinator's name resolves to.

    [] means all addresses. Host 0 needs them where the name resolves to another machine's addresses (this one is behind
    it), or to a loopback address (such as 127.0.1.1 in /etc/hosts) by which other machines cannot reach it.
    """
    name = coordinator.rpartition(":")[0].strip("[]")
    try:
        found = [ipaddress.ip_address(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except (OSError, ValueError):
        return []
    is_loopback_name = name == "localhost" or name in map(str, found)
    return sorted({str(ip) for ip in found if (is_loopback_name or not ip.is_loopback) and _is_ours(str(ip))})


def _is_ours(address: str) -> bool:
    """Whether this machine has an address."""
    try:
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
            return True
    except OSError:
        return False


class _Register:
    """Host 0's side: which hosts have arrived, and the answer that they get."""

    def __init__(self, process: ProcessInfo, own_facts: Mapping[str, str]):
        self.process, self.facts = process, own_facts
        self.names, self.errors = {0: own_name(0)}, []
        self.arrived, self.answered = {own_name(0)}, {own_name(0)}
        self.answer: dict[str, Any] | None = None

    async def serve(self, seconds: float) -> dict[str, Any]:
        """Answers until all have arrived or the time is over, and then until all that arrived know the outcome."""
        end = time.monotonic() + seconds
        server = await self._listen()
        while len(self.names) < self.process.count and time.monotonic() < end:
            await asyncio.sleep(ASK_SECONDS / 10)
        self.answer, end = self._outcome(seconds), time.monotonic() + LAST_SECONDS
        while self.answered != self.arrived and time.monotonic() < end:
            await asyncio.sleep(ASK_SECONDS / 10)
        server.close()  # without waiting for clients that are silent
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # of clients that come while it closes
        return self.answer

    async def _listen(self) -> asyncio.Server:
        coordinator = self.process.coordinator
        port, addresses = int(coordinator.rpartition(":")[2]), listening_addresses(coordinator)
        try:
            # asyncio reads all clients concurrently: a slow one does not delay the others.
            return await asyncio.start_server(self._meet, addresses or None, port, limit=MAX_LINE_BYTES, backlog=1024)
        except OSError as error:
            raise ValueError(
                f"host 0 cannot listen at port {port} of the coordinator {coordinator} "
                f"({os.strerror(error.errno)}); name a port that is free, and one process alone as host 0"
            ) from None

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client. It may be any program: an error ends its own connection only."""
        with contextlib.suppress(*PEER_ERRORS, asyncio.CancelledError):  # Cancelled: the server ends
            name = self._note(opened(await asyncio.wait_for(reader.readline(), CLIENT_SECONDS), "what a host sent"))
            answer = self.answer  # it may be set while this client reads
            writer.write(sealed({"answer": answer}))
            await asyncio.wait_for(writer.drain(), CLIENT_SECONDS)
            if answer is not None:
                self.answered.add(name)
        writer.close()

    def _note(self, message: Mapping[str, Any]) -> str:
        """Notes a host's message and returns the host's name. Raises ValueError or KeyError on another message."""
        index, name, other = message["host"], message["name"], message["facts"]
        if type(index) is not int or type(name) is not str or type(other) is not dict:
            raise ValueError("no message of a host")
        name = one_line(name)
        self.arrived.add(name)
        known = self.names.setdefault(index, name)
        if known != name:
            self.errors.append(f"two processes are host {index}: {known} and {name}; give each a number of its own")
        elif not 0 < index < self.process.count:
            self.errors.append(f"{name} is none of {self.process.count} hosts; give all hosts the same num_hosts")
        elif lines := differences(self.facts, other, name):
            self.errors.append(f"{name} would not do what host 0 does; make these the same:\n  {lines}")
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
    """The other hosts' side: asks until host 0 knows the outcome. ValueError after `seconds` without answer."""
    address, _, port = process.coordinator.rpartition(":")
    where = (address.strip("[]"), int(port))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(*PEER_ERRORS), socket.create_connection(where, timeout=CLIENT_SECONDS) as server:
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
    """A line for another host: an HMAC, keyed by this job's token, and the message as JSON."""
    text = json.dumps(message).encode()
    return _sum(text) + b" " + text + b"\n"


def opened(line: bytes, where: str) -> dict[str, Any]:
    """The message of a line; `where` names the sender. Raises ValueError where its HMAC is not of this job's token."""
    found, _, text = line.rstrip(b"\n").partition(b" ")
    if not hmac.compare_digest(found, _sum(text)):
        raise ValueError(f"{where} is not of this job")
    return parse_object(text, where)


def _sum(text: bytes) -> bytes:
    return hmac.new(_token(), text, hashlib.sha256).hexdigest().encode()


def _token() -> bytes:
    """The token that the hosts of a job share: LING_JAX_TOKEN, else the launcher's job number, else nothing."""
    return next((value.encode() for name in (TOKEN, *JOB_IDS) if (value := os.environ.get(name))), b"")
