"""Before JAX starts: which of several processes this one is, and whether all are there and about to do the same.

A process is called a host here, although several may share a machine. Host 0 listens at the coordinator's address and
the others ask there until all are known; then JAX's own service takes the port. JAX alone would end a run that lacks a
host without saying which.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ling_jax
from ling_jax.files import parse_json
from ling_jax.train.config import flatten

PACKAGES = ("ling_jax", "pallas_kernels", "launch")  # whose sources are the code of a run
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
ASK_SECONDS = 0.5  # between two questions of a host to host 0
LAST_SECONDS = 10  # for those that came to ask once more, when the outcome is known
MOST_TOLD = 8  # differences in one message
THEIRS = (
    OSError,
    ValueError,
    TypeError,
    OverflowError,
)  # what another process may cause: not there yet, a lost connection, no message


class Place(NamedTuple):
    """Of a process among those that train one model."""

    coordinator: str  # address:port of host 0
    count: int
    index: int
    devices: list[int] | None = None  # of this machine's, where processes share it; None: all


def find_place(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> Place | None:
    """This process's place, from what is given and else from the cluster's launcher; None where it is alone.

    The launchers are those of which JAX reads the environment: SLURM, Open MPI and TPU pods. Raises ValueError where
    one part is known and another is not.
    """
    devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    devices = [int(device) for device in devices.split(",")] if devices else None
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
    _check_place(coordinator, count, index)
    return Place(coordinator, count, index, devices)


def _cluster():
    """What JAX knows about the launcher of this process; None: nothing."""
    # JAX has no public name for these, and to ask it for all (Kubernetes too) warns or fails in pods that are no job.
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster, OmpiCluster, SlurmCluster

    clusters = (GkeTpuCluster, GceTpuCluster, SlurmCluster, OmpiCluster)
    return next((cluster for cluster in clusters if cluster.is_env_present()), None)


def _check_place(coordinator: str, count: int, index: int) -> None:
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
    """What a host's facts differ in from host 0's, in a line each; "" where in nothing."""
    keys = [key for key in {**first, **other} if first.get(key) != other.get(key)]
    lines = [f"{key}: {first.get(key, 'missing')} on host 0, {other.get(key, 'missing')} on {name}" for key in keys]
    left = [f"and {len(lines) - MOST_TOLD} more"] if len(lines) > MOST_TOLD else []
    return "\n  ".join(lines[:MOST_TOLD] + left)


def own_name(index: int) -> str:
    return f"host {index} ({socket.gethostname()}, process {os.getpid()})"


def roll_call(place: Place, own_facts: Mapping[str, str], seconds: float) -> tuple[str, ...]:
    """The names of all hosts, in order, when all are there and have the facts of host 0.

    Raises ValueError, on all hosts that came, naming those that did not come in so many seconds or what differs.
    """
    if place.index:
        answer = _ask(place, [place.index, own_name(place.index), dict(own_facts)], seconds)
    else:
        answer = _Register(place, own_facts).serve(seconds)
    if answer["error"]:
        raise ValueError(answer["error"])
    return tuple(answer["names"])


class _Register:
    """Host 0's side: who has come, and what they are told."""

    def __init__(self, place: Place, own_facts: Mapping[str, str]):
        self.place, self.facts = place, own_facts
        self.names, self.errors = {0: own_name(0)}, []
        self.came, self.told = {own_name(0)}, {own_name(0)}

    def serve(self, seconds: float) -> dict[str, Any]:
        """Answers until all are there or the time is over, and then until all that came know the outcome."""
        end, answer = time.monotonic() + seconds, None
        with self._listen() as server:
            server.settimeout(ASK_SECONDS)
            while answer is None or (self.told != self.came and time.monotonic() < end):
                if answer is None and (len(self.names) == self.place.count or time.monotonic() > end):
                    answer, end = self._answer(seconds), time.monotonic() + LAST_SECONDS
                with contextlib.suppress(*THEIRS):
                    self._meet(server, answer)
        return answer

    def _listen(self) -> socket.socket:
        port = int(self.place.coordinator.rpartition(":")[2])
        dual = socket.has_dualstack_ipv6()
        try:
            family = socket.AF_INET6 if dual else socket.AF_INET
            return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
        except OSError as error:
            raise ValueError(
                f"host 0 cannot listen at port {port} of the coordinator {self.place.coordinator} ({error.strerror}); "
                "name a port that is free, and one process alone as host 0"
            ) from None

    def _meet(self, server: socket.socket, answer: dict[str, Any] | None) -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            index, name, other = parse_json(_read_line(connection), "what a host sent")
            self._note(int(index), str(name), dict(other))
            connection.sendall(json.dumps(answer).encode() + b"\n")
            if answer is not None:
                self.told.add(name)

    def _note(self, index: int, name: str, other: Mapping[str, str]) -> None:
        self.came.add(name)
        known = self.names.setdefault(index, name)
        if known != name:
            self.errors.append(f"two processes are host {index}: {known} and {name}; give each a number of its own")
        elif index >= self.place.count:
            self.errors.append(f"{name} is none of {self.place.count} hosts; give all hosts the same num_hosts")
        elif told := differences(self.facts, other, name):
            self.errors.append(f"{name} would not train what host 0 does; make these the same:\n  {told}")

    def _answer(self, seconds: float) -> dict[str, Any]:
        missing = [f"host {index}" for index in range(self.place.count) if index not in self.names]
        error = self.errors[0] if self.errors else ""
        if missing and not error:
            error = (
                f"{', '.join(missing)} of {self.place.count} did not come to {self.place.coordinator} in {seconds:g} "
                "seconds; start the same command on all hosts, or give them more time (--host_timeout)"
            )
        return {"names": [self.names.get(index, "") for index in range(self.place.count)], "error": error}


def _ask(place: Place, message: list[Any], seconds: float) -> dict[str, Any]:
    """A host's side: asks until it is told the outcome, or for so many seconds nobody answers."""
    address, _, port = place.coordinator.rpartition(":")
    where = (address.strip("[]"), int(port))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(*THEIRS), socket.create_connection(where, timeout=10) as server:
            server.sendall(json.dumps(message).encode() + b"\n")
            answer, end = parse_json(_read_line(server), "what host 0 sent"), time.monotonic() + seconds
            if answer is not None:
                return answer
        time.sleep(ASK_SECONDS)
    raise ValueError(
        f"host 0 of {place.count} did not answer {own_name(place.index)} at {place.coordinator} in {seconds:g} "
        "seconds; start the same command there, check the address, or give it more time (--host_timeout)"
    )


def _read_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        return file.readline()
