"""Messages between processes, through a coordination service of one's own; threads play the processes."""

import concurrent.futures
import time

import pytest
from jax._src.lib import _jax

from ling_jax.distributed import peers as module
from ling_jax.distributed.peers import ALONE, Peers
from tests.launch.test_many_hosts import free_port


@pytest.fixture
def service(monkeypatch):
    """A coordination service, and its client in place of this process's."""
    address = f"localhost:{free_port()}"
    server = _jax.get_distributed_runtime_service(address, 1)
    client = _jax.get_distributed_runtime_client(address, 0)
    client.connect()
    monkeypatch.setattr(module.global_state, "client", client)
    yield client
    client.shutdown()
    server.shutdown()


def test_a_message_waits_for_its_reader_and_a_reader_for_its_message(service, monkeypatch):
    monkeypatch.setattr(module, "TAKE_MS", 50)
    first, second = Peers(0, 2), Peers(1, 2)
    first.post(["bfloat16", [1, 32, 16]], "row 0")
    assert second.take("row 0") == ["bfloat16", [1, 32, 16]]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        taken = pool.submit(first.take, "row 0")  # a name may be used again once its message was taken
        time.sleep(0.3)  # several requests find nothing
        assert not taken.done()
        second.post(0.1 + 0.2, "row 0")
        assert taken.result(60) == 0.1 + 0.2


def test_an_error_of_the_service_is_no_late_message(service, monkeypatch):
    def broken(key, timeout):
        raise module.jax.errors.JaxRuntimeError("UNAVAILABLE: host 0 is gone")

    class Broken:
        blocking_key_value_get = staticmethod(broken)

    monkeypatch.setattr(module.global_state, "client", Broken())
    with pytest.raises(module.jax.errors.JaxRuntimeError, match="host 0 is gone"):
        Peers(1, 2).take("row 0")


def test_a_process_alone_has_all_items_and_waits_for_nobody():
    assert ALONE.share(range(5)) == [0, 1, 2, 3, 4]
    assert ALONE.gather({"a": 1}, "facts") == [{"a": 1}] and ALONE.first(2, "step") == 2
    ALONE.wait("all")
    assert [Peers(index, 3).share(range(5)) for index in range(3)] == [[0, 3], [1, 4], [2]]
    assert Peers(3, 4).share(range(2)) == []
