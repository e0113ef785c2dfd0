"""What clients may take, who may ask, and what becomes of those that go away."""

import contextlib
import http.client
import json
import socket
import threading

import openai
import pytest

from ling_jax.serve.http import Keys, Limits
from tests.helpers.served import NAME, running

MESSAGES = [{"role": "user", "content": "some words"}]
LONG = {"model": NAME, "messages": MESSAGES, "max_tokens": 1500, "stream": True}
LIMITS = Limits(body_bytes=2000, choices=2, seconds=1.0, body_seconds=0.3, stall_seconds=0.3)


@pytest.fixture(scope="module")
def narrow():
    with running(limits=LIMITS, keys=Keys(api="open", admin="sesame")) as found:
        yield found


@pytest.fixture
def asked(narrow):
    """Asks with the key, and finds the engine empty afterwards."""

    def post(path, body, key="open", **headers):
        return narrow.post(path, body, headers={"Authorization": f"Bearer {key}"} | headers)

    yield post
    narrow.wait_until_idle()


def error_of(response, status: int) -> dict:
    assert response.status_code == status, response.text
    (found,) = response.json().values()
    assert found.keys() == {"message", "type", "param", "code"}
    return found


def test_a_large_body_is_refused(asked):
    body = {"messages": [{"role": "user", "content": "x" * 2000}]}
    assert "more than 2000 bytes" in error_of(asked("/v1/chat/completions", body), 413)["message"]


def test_a_slow_body_is_not_waited_for(narrow):
    address = narrow.url.removeprefix("http://").split(":")
    with contextlib.closing(socket.create_connection((address[0], int(address[1])))) as connection:
        head = "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer open\r\n"
        connection.sendall(f"{head}Content-Length: 20\r\n\r\n{{".encode())
        connection.settimeout(20)
        assert b"408" in connection.recv(1000).split(b"\r\n")[0]


def test_a_body_that_is_no_json_by_its_header_is_refused(asked):
    assert "Content-Type" in error_of(asked("/tokenize", {}, **{"Content-Type": "text/plain"}), 415)["message"]


def test_more_answers_than_places_are_refused(asked):
    refused = asked("/v1/chat/completions", LONG | {"n": 3})
    assert error_of(refused, 429)["code"] == "queue_full" and refused.headers["Retry-After"]
    assert asked("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, "n": 2}).status_code == 200


def test_an_answer_that_takes_too_long_ends(asked):
    free = {"messages": MESSAGES, "max_tokens": 1900, "ignore_eos": True}
    assert error_of(asked("/v1/chat/completions", free), 408)["code"] == "timeout"
    events = asked("/v1/chat/completions", free | {"stream": True}).text.strip().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"
    assert events[-1] == "data: [DONE]"


def test_without_the_key_nothing_is_answered(narrow, asked):
    for path in ("/v1/completions", "/tokenize", "/v1/weights/init"):
        assert error_of(asked(path, {}, key="wrong"), 401)["code"] == "invalid_api_key"
        assert error_of(narrow.post(path, {}), 401)["code"] == "invalid_api_key"
    assert narrow.get("/v1/models").status_code == 401
    assert narrow.get("/health").status_code == narrow.get("/metrics").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        narrow.client("wrong").models.list()
    assert narrow.client("open").models.list().data


def test_weights_need_the_admins_key(asked):
    for phase in ("init", "start", "update", "finish", "abandon"):
        error_of(asked(f"/v1/weights/{phase}", {}), 401)
    assert asked("/v1/weights/init", {}, key="sesame").status_code == 200
    assert asked("/tokenize", {"prompt": "x"}, key="sesame").status_code == 200


def test_without_an_admins_key_weights_are_for_this_machine_alone(server):
    """A page of the web may send its reader's browser here; its requests name another host."""
    assert server.post("/v1/weights/init", {}).status_code == 200
    error = error_of(server.post("/v1/weights/init", {}, headers={"Host": "rebound.example:8000"}), 403)
    assert "admin" in error["message"]
    for name in ("Via", "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP"):
        error = error_of(server.post("/v1/weights/init", {}, headers={name: "10.0.0.1"}), 403)
        assert "through no proxy" in error["message"]
    assert server.post("/v1/weights/init", b"{}", headers={"Content-Type": "text/plain"}).status_code == 415


def test_a_client_that_goes_away_frees_its_slot(server):
    for stream in (True, False):
        host, port = server.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port))
        body = json.dumps(LONG | {"stream": stream, "ignore_eos": True})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        if stream:
            assert connection.getresponse().read(10) == b'data: {"id'
        else:
            server.wait_until_busy()
        before = server.server.metrics.disconnects
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        server.wait_until_idle(5)
        assert server.server.metrics.disconnects == before + 1


@pytest.mark.slow
def test_a_client_that_reads_nothing_frees_its_slot():
    """Its stream ends once the socket's buffers are full."""
    with running(limits=Limits(stall_seconds=0.2)) as server, contextlib.ExitStack() as stack:
        host, port = server.url.removeprefix("http://").split(":")
        connection = stack.enter_context(contextlib.closing(socket.socket()))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((host, int(port)))
        body = json.dumps(LONG | {"n": 60, "logprobs": True, "ignore_eos": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.wait_until_busy()
        server.wait_until_idle(60)
        assert server.server.metrics.disconnects == 1


def test_a_crash_of_the_engine_reaches_clients_and_health():
    with running() as server:
        failed = []

        def read():
            try:
                list(server.client().chat.completions.create(**LONG))
            except openai.APIError as error:
                failed.append(str(error))

        reader = threading.Thread(target=read)
        reader.start()
        server.wait_until_busy()
        server.server.engine.device.run_tiles = None
        reader.join()
        assert "the engine has ended: TypeError" in failed[0]
        assert server.get("/health").status_code == 503
        assert error_of(server.post("/v1/chat/completions", {"messages": MESSAGES}), 503)["code"] == "engine_ended"
        assert server.server.pending == 0
