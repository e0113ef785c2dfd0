"""Bodies that no client should send: a 4xx that says why, never a 500, and the server goes on."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.server_bodies import bad_bodies
from ling_jax.serve.http import Limits
from ling_jax.serve.protocol import ChatBody, CompletionBody
from tests.helpers.served import ROOT, running

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
GOOD = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}

FIELDS = sorted({*ChatBody.model_fields, *CompletionBody.model_fields, "tokens", "unknown"})
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([2**31, -1, 10**40, 1e308, 0.5]))
KEYS = st.sampled_from(["type", "function", "name", "role", "content", "schema", "a"])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "function", "name", "role", "content", "schema", "a"]), inner, max_size=3
        ),
    ),
    max_leaves=8,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4)


def check(response) -> None:
    """An answer, or an error in OpenAI's form that has a message."""
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, response.text
        assert response.json()["error"]["message"] and response.json()["error"].keys() >= {"type", "param", "code"}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PATHS), BODIES)
def test_random_fields_are_answered_or_refused(server, path, fields):
    body = json.dumps((GOOD if "chat" in path else {"prompt": "x", "max_tokens": 1}) | fields | {"stream": False})
    check(server.post(path, body.encode()))


BROKEN = {
    b"": "is missing",
    b"\xff\xfe": "the body is no JSON: 'utf-8' codec",
    b"{": "the body is no JSON",
    b"[1]": "the body is [1]; expected a JSON object",
    b'{"max_tokens": 1, "max_tokens": 2}': "a name occurs twice",
    b'{"temperature": NaN}': "NaN is not JSON",
    b'{"seed": 1e999}': "too large for a float",
    b'{"seed": ' + b"9" * 5000 + b"}": "the body is no JSON",
    b"[" * 100_000: "nested in more than 100 levels",
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}': "whole characters",
    b'{"messages": [{"role": "user"}]}': "messages[0].content is None; expected text",
    b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': "messages[0].content[0] is of type",
    b'{"messages": "x"}': "messages is 'x'",
    b'{"messages": [{"role": "user", "content": "x"}], "n": 0}': "n is 0",
    b'{"messages": [{"role": "user", "content": "x"}], "n": "1"}': "n is '1': Input should be a valid integer",
    b'{"messages": [{"role": "user", "content": "x"}], "stop": [""]}': "stop[0] is ''",
    b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"x": 1}}': "no token id",
    b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"9999": 1}}': "the vocabulary has 640",
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999}': "lower max_tokens",
    b'{"messages": [{"role": "user", "content": "x"}], "presence_penalty": 0.5}': "presence_penalty is 0.5",
    b'{"prompt_token_ids": [640], "messages": [0]}': "token 640 is not in the vocabulary of 640",
}


@pytest.mark.parametrize("body", BROKEN)
def test_what_is_wrong_is_said(server, body):
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400 and BROKEN[body] in response.json()["error"]["message"], response.text


def test_no_path_reads_a_file(server):
    for path in (
        "/v1/models/../../etc/passwd",
        "/v1/models/%2e%2e%2fetc%2fpasswd",
        "/../pyproject.toml",
        "//etc/passwd",
    ):
        assert server.get(path).status_code == 404
    assert "build-system" in (ROOT / "pyproject.toml").read_text()  # it is there


def test_other_methods_and_paths_are_answered_in_the_same_form(server):
    assert server.get("/v1/chat/completions").json()["error"]["message"] == "/v1/chat/completions is not for GET"
    assert server.post("/v1/responses", {}).json()["error"]["message"] == "there is no /v1/responses"


def test_a_failure_of_the_server_is_logged_without_the_words_of_the_request(server, capfd, monkeypatch):
    def fail(*_):
        raise KeyError("a secret word")

    monkeypatch.setattr("ling_jax.serve.app.asked_tokens", fail)
    response = server.post("/tokenize", {"prompt": "a secret word"})
    assert response.status_code == 500 and "secret" not in response.text
    logged = capfd.readouterr()
    assert "KeyError in" in logged.err and "secret" not in logged.err + logged.out
    monkeypatch.setattr("ling_jax.serve.writers.ChatWriter.chunks", fail)
    stream = server.post("/v1/chat/completions", GOOD | {"stream": True})
    assert stream.status_code == 200 and "the server has failed" in stream.text and stream.text.endswith("[DONE]\n\n")
    assert "KeyError in" in capfd.readouterr().err and "secret" not in stream.text


def test_the_description_has_every_endpoint_and_field(server):
    found = server.get("/openapi.json").json()
    assert set(found["paths"]) >= {*PATHS, "/health", "/metrics", "/v1/models", "/v1/weights/update"}
    assert found["components"]["schemas"]["ChatBody"]["properties"].keys() == ChatBody.model_fields.keys()


@pytest.mark.slow
def test_five_thousand_malformed_bodies_are_no_failure_of_the_server(server):
    for path, body in bad_bodies(5000, seed=0):
        check(server.post(path, body))


@pytest.fixture(scope="module")
def impatient():
    """A server that ends long answers, which random requests ask for."""
    with running(limits=Limits(seconds=0.5)) as found:
        yield found
        found.wait_until_idle()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_the_server_keeps_to_its_description(impatient, mode):
    """Requests that fit the description and such that do not have the responses that it promises."""
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.checks import load_all_checks
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{impatient.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.method.upper() != "POST" or operation.path.startswith("/v1/weights"):
            continue

        @settings(max_examples=100, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=GenerationMode[mode]))
        def conforms(case):
            # What one field may be can depend on another one, which a description cannot say.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        conforms()
