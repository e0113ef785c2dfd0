"""Which process is which, and what each is told when one is missing or is about to do something else."""

import concurrent.futures
import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from ling_jax.distributed import rendezvous as module
from ling_jax.distributed.rendezvous import ProcessInfo, differences, facts, find_process, rendezvous
from tests.helpers.small_run import small_config

FACTS = {"config.train.steps": "30", "ling_jax/a.py": "1234"}


@pytest.fixture
def coordinator():
    with socket.socket() as free:
        free.bind(("", 0))
        return f"localhost:{free.getsockname()[1]}"


def call_all(coordinator, hosts, count, seconds):
    """What each of {index: facts} gets or is told; the threads of this process are the hosts."""
    with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
        calls = [pool.submit(rendezvous, ProcessInfo(coordinator, count, host), own, seconds) for host, own in hosts]
        return [call.exception() or call.result() for call in calls]


@pytest.fixture(autouse=True)
def quick_questions(monkeypatch):
    monkeypatch.setattr(module, "ASK_SECONDS", 0.02)


def test_all_hosts_get_all_names(coordinator):
    names = call_all(coordinator, [(host, FACTS) for host in (2, 1, 3, 0)], 4, 60)
    assert all(found == names[0] for found in names)
    assert [name.split(" (")[0] for name in names[0]] == ["host 0", "host 1", "host 2", "host 3"]


def test_hosts_that_do_not_come_are_named_on_all_others(coordinator):
    for told in call_all(coordinator, [(0, FACTS), (2, FACTS)], 4, 0.5):
        assert str(told).startswith(f"host 1, host 3 of 4 did not come to {coordinator} in 0.5 seconds; start the same")


def test_a_first_host_that_does_not_come_is_named(coordinator):
    (told,) = call_all(coordinator, [(1, FACTS)], 2, 0.2)
    assert f"host 0 of 2 did not answer host 1 ({socket.gethostname()}" in str(told) and coordinator in str(told)


def test_what_differs_is_told_on_both_sides(coordinator):
    other = {"config.train.steps": "31", "ling_jax/b.py": "5678"}
    for told in call_all(coordinator, [(0, FACTS), (1, other), (2, FACTS)], 3, 60):
        assert "host 1 (" in str(told) and "would not do what host 0 does" in str(told)
        assert "config.train.steps: 30 on host 0, 31 on host 1" in str(told)
        assert "ling_jax/a.py: 1234 on host 0, missing on host 1" in str(told)
        assert "ling_jax/b.py: missing on host 0, 5678 on host 1" in str(told)


def test_many_differences_are_counted():
    first = {f"config.{i}": "0" for i in range(20)}
    assert differences(first, {}, "host 1").count("\n") == 8 and "and 12 more" in differences(first, {}, "host 1")


def test_a_number_or_a_port_that_is_taken_is_told(coordinator, monkeypatch):
    names = iter(("host 1 (a)", "host 1 (b)"))  # each host asks for its own once
    monkeypatch.setattr(module, "own_name", lambda index: next(names) if index else "host 0 (c)")
    for told in call_all(coordinator, [(0, FACTS), (1, FACTS), (1, FACTS)], 3, 1):
        assert "two processes are host 1: host 1 (" in str(told)
    with socket.create_server(("", int(coordinator.split(":")[1]))):
        (told,) = call_all(coordinator, [(0, FACTS)], 2, 1)
        assert "cannot listen at port" in str(told) and "name a port that is free" in str(told)


def no_message(message: bytes) -> bytes:
    """A line as a host with the token would send it, of something that is no message."""
    return module._sum(message) + b" " + message + b"\n"


HOSTILE = [
    b"", b"\n", b"\xff\n", b"GET / HTTP/1.1\r\n", b"[]\n", b"7\n", b'{"host": 1}\n', b"[" * 200_000 + b"\n",
    b"x" * 3_000_000,
    b'[Infinity, "a", {}]\n', b"0" * 64 + b' {"host": 1, "name": "a", "facts": {}}\n',
    no_message(b""), no_message(b"[]"), no_message(b"{}"), no_message(b"[" * 200_000), no_message(b'{"host": 1e400}'),
    no_message(b'{"host": true, "name": "a", "facts": {}}'), no_message(b'{"host": 1, "name": 7, "facts": {}}'),
    no_message(b'{"host": 1, "name": "a", "facts": []}'), no_message(b'{"host": "1", "name": "a", "facts": {}}'),
    no_message(b'{"host": 1, "host": 2, "name": "a", "facts": {}}'), no_message(b"\x80\x81"),
    no_message(b'{"host": 1, "name": "' + b"a" * 2_000_000 + b'", "facts": {}}'),
]  # fmt: skip


def test_hostile_clients_change_nothing_and_silent_ones_hold_up_nobody(coordinator):
    """23 that send what is no message, and 20 that send nothing or the beginning of a line."""
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as open_lines:
        first = pool.submit(rendezvous, ProcessInfo(coordinator, 2, 0), FACTS, 60)
        for i in range(20):
            open_lines.enter_context(connected(coordinator)).sendall(b"" if i % 2 else b"123")
        for words in HOSTILE:
            with connected(coordinator) as line, contextlib.suppress(ConnectionError):  # cut off after 1 MB
                line.sendall(words)
        assert rendezvous(ProcessInfo(coordinator, 2, 1), FACTS, 60) == first.result()
    assert time.monotonic() - begun < module.CLIENT_SECONDS


def test_a_process_without_the_token_does_not_take_part(coordinator, monkeypatch):
    """The threads of this process share an environment, so each message is sealed with the token of its host."""
    sums = {0: b"secret", 1: b"secret", 2: b"guessed"}
    monkeypatch.setattr(module, "_token", lambda: sums[int(threading.current_thread().name[-1])])

    def call(host):
        threading.current_thread().name = f"host {host}"
        patched = ProcessInfo(coordinator, 2, min(host, 1))
        return rendezvous(patched, FACTS if host < 2 else {}, 1 if host == 2 else 60)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first, stranger = pool.submit(call, 0), pool.submit(call, 2)
        assert "check the address and LING_JAX_TOKEN" in str(stranger.exception())
        assert pool.submit(call, 1).result() == first.result()


def test_the_token_is_the_secret_else_the_number_of_the_job(environment):
    for name in (module.TOKEN, *module.JOB_IDS):
        environment.delenv(name, raising=False)
    alone = module.sealed({})
    environment.setenv("SLURM_JOB_ID", "7")
    of_job = module.sealed({})
    environment.setenv("LING_JAX_TOKEN", "secret")
    assert len({alone, of_job, module.sealed({})}) == 3 and module.opened(module.sealed({"a": 1}), "it") == {"a": 1}
    with pytest.raises(ValueError, match="what a host sent is not of this job"):
        module.opened(of_job, "what a host sent")


def test_host_0_listens_at_the_coordinators_address_alone(coordinator):
    port = int(coordinator.split(":")[1])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(rendezvous, ProcessInfo(coordinator, 2, 0), FACTS, 60)
        connected(coordinator).close()
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        places = {line.split()[1] for line in listening.splitlines() if line.split()[3] == "0A"}
        found = {place.split(":")[0] for place in places if place.endswith(f":{port:04X}")}
        assert "0100007F" in found and not any(set(address) == {"0"} for address in found)
        rendezvous(ProcessInfo(coordinator, 2, 1), FACTS, 60)
        first.result()


@pytest.mark.parametrize(
    ("coordinator", "found"),
    [("127.0.0.1:1", ["127.0.0.1"]), ("192.0.2.1:1", []), ("no.such.host.invalid:1", []), ("0.0.0.0:1", ["0.0.0.0"])],
)
def test_a_name_that_stands_for_no_address_of_this_machine_means_all(coordinator, found):
    assert module.listening_addresses(coordinator) == found


def connected(coordinator) -> socket.socket:
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("localhost", int(coordinator.split(":")[1])))


def test_facts_are_the_config_the_sources_and_the_versions():
    found = facts(small_config("a"), workdir="runs/a")
    assert found["config.train.steps"] == "12" and found["workdir"] == "'runs/a'"
    assert {
        "ling_jax/run/loop.py",
        "pallas_kernels/platform.py",
        "launch/pretrain.py",
        "jax",
        "python",
    } <= found.keys()
    other = facts(small_config("a", steps=13), workdir="runs/a")
    assert {key for key in found if found[key] != other[key]} == {"config.train.steps"}


NOWHERE = (
    "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "JAX_LOCAL_DEVICE_IDS", "JAX_COORDINATOR_PORT", "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES", "JAX_PROCESS_ID",
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in NOWHERE:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_is_alone_unless_it_is_told_otherwise(environment):
    assert find_process() is None
    assert find_process("node0:8476", 1, 0) is None
    assert find_process("node0:8476", 4, 3) == ProcessInfo("node0:8476", 4, 3, None)
    environment.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    assert find_process("[::1]:8476", 2, 1) == ProcessInfo("[::1]:8476", 2, 1, [0, 1])


def test_variables_of_the_environment_say_who_is_who(environment):
    for name, value in {"COORDINATOR_ADDRESS": "node0:8476", "NUM_PROCESSES": "4", "PROCESS_ID": "3"}.items():
        environment.setenv(f"JAX_{name}", value)
    assert find_process() == ProcessInfo("node0:8476", 4, 3)
    assert find_process("node1:8476", 2, 0) == ProcessInfo("node1:8476", 2, 0)
    environment.setenv("JAX_PROCESS_ID", "three")
    with pytest.raises(ValueError, match="the environment has JAX_PROCESS_ID='three'; expected a whole number"):
        find_process()
    for name in NOWHERE[2:]:
        environment.setenv(name, "")  # as containers do
    assert find_process() is None


SLURM = {"JOB_ID": "7", "STEP_NODELIST": "node[03-04]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}


def test_slurm_says_who_is_who(environment):
    for name, value in SLURM.items():
        environment.setenv(f"SLURM_{name}", value)
    assert find_process() == ProcessInfo(f"node03:{65535 - 4095 + 7}", 2, 1, [0])
    assert find_process("node9:99") == ProcessInfo("node9:99", 2, 1, [0])  # what is given wins
    environment.setenv("JAX_LOCAL_DEVICE_IDS", "0,1,2,3")
    assert find_process().devices == [0, 1, 2, 3]
    environment.setenv("SLURM_NTASKS", "1")
    assert find_process() is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("node0:8476", 2, None), "of coordinator, num_hosts and host, host is missing; give all three"),
        ((None, 2, 0), "coordinator is missing"),
        (("node0:8476", None, None), "num_hosts and host is missing"),
        (("node0", 2, 0), "coordinator is 'node0'; expected address:port"),
        (("node0:0", 2, 0), "expected address:port"),
        (("node0:8476", 2, 2), "host is 2 and num_hosts 2; expected 0 <= host < num_hosts"),
        (("node0:8476", 2, -1), "host is -1"),
        (("node0:8476", 0, 0), "num_hosts 0"),
    ],
)
def test_a_place_that_makes_no_sense_is_an_error(environment, given, message):
    with pytest.raises(ValueError, match=message):
        find_process(*given)
