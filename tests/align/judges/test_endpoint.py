"""An endpoint as judge, with a real server on this machine: a reply or an error comes back in time."""

import json
import time

import pytest

from ling_jax.align.judges import endpoint as judge_endpoint
from ling_jax.align.judges.endpoint import EndpointJudge
from ling_jax.align.judges.forms import Numbers, Question
from tests.helpers.judge_server import Endpoint, Response, served

NONE = "redundant: none"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(judge_endpoint, "PAUSE", 0.01)


def ask(respond, *texts: str, timeout=5.0):
    with served(Endpoint(respond)) as server:
        judge = EndpointJudge(server.url, "judge-1", "secret", timeout=timeout, max_tokens=8)
        return judge([Question(text, Numbers(2)) for text in texts]), server


def test_replies_come_in_the_order_of_the_questions():
    texts = [f"question {i}" for i in range(20)]
    replies, server = ask(lambda prompt, attempt: Response(prompt.upper(), wait=0.1 / (1 + len(prompt))), *texts)
    assert [reply.text for reply in replies] == [text.upper() for text in texts] and not any(r.error for r in replies)
    assert sorted(server.prompts) == sorted(texts) and server.keys == {"Bearer secret"}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(status):
    busy_twice = lambda prompt, attempt: Response(NONE, status=status if attempt < 2 else 200)  # noqa: E731
    replies, server = ask(busy_twice, "a")
    assert replies[0] == (NONE, "") and len(server.prompts) == 3


def test_an_endpoint_that_stays_busy_is_an_error_of_that_question_alone():
    replies, server = ask(
        lambda prompt, attempt: Response(
            NONE, status=500 if prompt == "a" else 200, body="overloaded" if prompt == "a" else None
        ),
        "a",
        "b",
    )
    assert replies[0] == ("", "the endpoint answers 500: overloaded") and replies[1] == (NONE, "")
    assert server.prompts.count("a") == judge_endpoint.MAX_ATTEMPTS


def test_the_endpoint_says_how_long_to_wait():
    later = lambda prompt, attempt: Response(NONE, status=200 if attempt else 429, headers=(("Retry-After", "1"),))  # noqa: E731
    begun = time.monotonic()
    replies, _ = ask(later, "a")
    assert replies[0].text == NONE and time.monotonic() - begun >= 1
    replies, server = ask(
        lambda prompt, attempt: Response(status=429, headers=(("Retry-After", "60"),)), "a", timeout=2
    )
    assert "429" in replies[0].error and len(server.prompts) == 1, "there is no time for a second attempt"


def test_a_bad_request_is_not_repeated():
    replies, server = ask(lambda prompt, attempt: Response(status=400, body="no such parameter"), "a")
    assert replies[0].error == "the endpoint answers 400: no such parameter" and len(server.prompts) == 1


def test_a_timeout_is_an_error_and_holds_nobody_up():
    begun = time.monotonic()
    replies, _ = ask(lambda prompt, attempt: Response(NONE, wait=20.0 * (prompt == "a")), "a", "b", timeout=0.5)
    assert "Timeout" in replies[0].error and replies[1].text == NONE and time.monotonic() - begun < 3


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (Response(body="{"), "the response is no chat completion: ValueError: the response"),
        (Response(body="[]"), "is no chat completion"),
        (Response(body='{"choices": []}'), "is no chat completion: IndexError"),
        (Response(body='{"choices": [{"message": {"content": null}}]}'), "its content is no text"),
        (Response(body=json.dumps({"choices": "x" * (1 << 20)})), "the response is longer than 1048576 bytes"),
        (Response(NONE, finish="length"), "passes judge.max_tokens"),
    ],
)
def test_a_response_in_another_form_is_an_error(response, message):
    replies, _ = ask(lambda prompt, attempt: response, "a", timeout=2)
    assert replies[0].text == "" and message in replies[0].error


def test_a_server_that_is_gone_is_an_error():
    _, server = ask(lambda prompt, attempt: Response(NONE), "a")
    judge = EndpointJudge(server.url, "judge-1", "", timeout=1, max_tokens=8)
    assert "ConnectError" in judge([Question("a", Numbers(2))])[0].error
    with pytest.raises(OSError, match=r"judge.base_url: .*/models cannot be reached: ConnectError"):
        judge.check()


def test_the_key_and_the_model_are_checked_before_work():
    def check(**options):
        with served(Endpoint(lambda prompt, attempt: Response(NONE), **options)) as server:
            EndpointJudge(server.url, "judge-1", "secret", timeout=5, max_tokens=8).check()
            assert server.prompts == []

    check()
    check(models_status=404, models=())  # it has no list
    with pytest.raises(ValueError, match=r"answers 401: it refuses the key of judge.key_variable"):
        check(models_status=401)
    with pytest.raises(ValueError, match=r"judge.model is 'judge-1', did you mean 'judge-2'.*lists judge-2, other"):
        check(models=("judge-2", "other"))
