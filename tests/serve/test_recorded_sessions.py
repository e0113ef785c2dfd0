"""Sessions of the server with OpenAI's own client: what is recorded, how it goes on, and what is given out."""

import concurrent.futures

import numpy as np
import openai
import pytest

from ling_jax.chat.template import END
from ling_jax.serve.http import Keys, Limits
from tests.helpers.served import CONFIG, NAME, params, running, tokenizer
from tests.helpers.tiny import random_params

ASKED = [{"role": "user", "content": "some words"}]
PARAMETERS = {
    "type": "object",
    "properties": {"x": {"enum": ["a b", "c"]}},
    "required": ["x"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "first", "parameters": PARAMETERS}}]
RIGHT = {"logprobs": True, "extra_body": {"return_token_ids": True}}


def client_of(server, name: str, *, by_header: bool = False) -> openai.OpenAI:
    if by_header:
        return server.client().with_options(default_headers={"X-Session": name})
    return openai.OpenAI(base_url=f"{server.url}/sessions/{name}/v1", api_key="none", max_retries=0, timeout=60)


def ask(client, messages=ASKED, **fields):
    fields = {"model": NAME, "max_tokens": 12, "seed": 7} | fields
    return client.chat.completions.create(messages=messages, **fields)


def samples(server, name: str, query: str = "") -> list[dict]:
    response = server.get(f"/v1/sessions/{name}{query}")
    assert response.status_code == 200, response.text
    return response.json()["samples"]


def drawn(sample: dict) -> list[list[int]]:
    return [sample["token_ids"][start:stop] for start, stop in sample["turns"]]


@pytest.mark.parametrize("by_header", [False, True])
def test_a_session_has_what_was_drawn(server, by_header):
    name = f"one-{by_header}"
    answer = ask(client_of(server, name, by_header=by_header), **RIGHT)
    (sample,) = samples(server, name)
    choice = answer.choices[0]
    assert sample["prompt_token_ids"] == answer.prompt_token_ids and sample["token_ids"] == choice.token_ids
    assert sample["logprobs"] == [row.logprob for row in choice.logprobs.content]
    assert sample["weight_versions"] == choice.weight_versions and sample["turns"] == [[0, len(choice.token_ids)]]
    assert sample["finish_reason"] == choice.finish_reason
    assert sample["messages"] == [*ASKED, {"role": "assistant", "content": choice.message.content}]


def test_calls_without_a_session_are_not_recorded(server):
    before = server.get("/v1/sessions").json()
    ask(server.client())
    assert server.get("/v1/sessions").json() == before


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ends", [False, True])
def test_the_next_turn_goes_on_from_the_tokens_as_they_were_drawn(server, stream, ends):
    """Whether the model ended its turn, or a limit did."""
    name, messages = f"turns-{stream}-{ends}", list(ASKED)
    client = client_of(server, name)
    end = tokenizer().token_to_id(END)
    bias = {"logit_bias": {str(end): 100 if ends else -100}, "extra_body": {"min_tokens": 3}}
    for turn in range(3):
        answer = ask(client, messages, stream=stream, **bias)
        text = (
            "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message.content
        )
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"more {turn}"}]
    (sample,) = samples(server, name)
    assert sample["calls"] == [0, 1, 2] and len(sample["turns"]) == 3
    assert [turn[-1] == end for turn in drawn(sample)] == [ends] * 3
    assert len(samples(server, name, "?samples=individual")) == 3
    (listed,) = [found for found in server.get("/v1/sessions").json()["sessions"] if found["name"] == name]
    assert (listed["calls"], listed["branches"], listed["pending"]) == (3, 1, 0)


def test_a_call_that_the_client_writes_in_its_own_way_goes_on(server):
    """Ids are new, arguments are written with other blanks, and the content is null."""
    client = client_of(server, "calls")
    first = ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    (call,) = first.choices[0].message.tool_calls
    said = {"role": "assistant", "content": None, "tool_calls": [call.model_dump() | {"id": "call_0"}]}
    said["tool_calls"][0]["function"]["arguments"] = f" {call.function.arguments} "
    result = {"role": "tool", "tool_call_id": "call_0", "content": "3"}
    ask(client, [*ASKED, said, result], tools=TOOLS)
    (sample,) = samples(server, "calls")
    assert sample["calls"] == [0, 1]
    assert [message["role"] for message in sample["messages"]] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "other words"}]},
        {"tools": TOOLS},
        {"reasoning_effort": "high"},
    ],
    ids=["words", "tools", "effort"],
)
def test_what_does_not_go_on_from_a_call_is_a_root(server, change):
    name = f"roots-{next(iter(change))}"
    client = client_of(server, name)
    said = ask(client).choices[0].message.content
    more = [{"role": "assistant", "content": said}, {"role": "user", "content": "more"}]
    ask(client, change.pop("messages", ASKED) + more, **change)
    assert [sample["calls"] for sample in samples(server, name, "?branches=all")] == [[0], [1]]


def test_retries_choices_and_branches_are_siblings(server):
    client = client_of(server, "branches")
    choices = ask(client, n=2).choices
    for i, choice in enumerate(choices):
        said = {"role": "assistant", "content": choice.message.content}
        for seed in range(2):
            ask(client, [*ASKED, said, {"role": "user", "content": f"more {i}"}], seed=seed)
    found = samples(server, "branches", "?branches=all")
    assert len(found) == 4 and all(len(sample["calls"]) == 2 for sample in found)
    assert sorted({sample["calls"][0] for sample in found}) == [0, 1]
    assert samples(server, "branches")[0]["calls"][-1] == 5  # the last one that was answered
    assert len(samples(server, "branches", "?samples=individual&branches=all")) == 6


def test_parallel_calls_are_all_recorded(server):
    client = client_of(server, "parallel")
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: ask(client, [{"role": "user", "content": f"words {i}"}]), range(8)))
    assert len(samples(server, "parallel", "?branches=all")) == 8


def test_a_stream_that_its_client_leaves_is_cut_off(server):
    client = client_of(server, "left")
    ask(client)
    stream = ask(client, [*ASKED, *ASKED], stream=True, max_tokens=1500, extra_body={"ignore_eos": True})
    next(chunk for chunk in stream if chunk.choices[0].delta.content)
    stream.close()
    server.wait_until_idle()
    found = samples(server, "left", "?branches=all")
    assert [sample["finish_reason"] for sample in found] == ["length", "abort"]
    assert samples(server, "left")[0]["calls"] == [0]


def test_completions_go_on_from_token_ids(server):
    client = client_of(server, "completions")
    fields = {"model": NAME, "max_tokens": 5, "extra_body": {"return_token_ids": True}}
    first = client.completions.create(prompt="some words", **fields)
    prompt = first.prompt_token_ids + first.choices[0].token_ids
    client.completions.create(prompt=[*prompt, 7, 8], **fields)
    (sample,) = samples(server, "completions")
    assert sample["calls"] == [0, 1] and sample["token_ids"][5:7] == [7, 8] and sample["logprobs"][5:7] == [0.0, 0.0]


def test_scores_of_a_prompt_are_no_answers(server):
    client = client_of(server, "scores")
    client.completions.create(model=NAME, prompt="some words", max_tokens=1, echo=True, logprobs=1)
    assert samples(server, "scores", "?branches=all") == []


def test_versions_are_those_of_each_token(server):
    client, engine = client_of(server, "versions"), server.server.engine
    said = ask(client).choices[0].message.content
    before = engine.version
    engine.load(random_params(CONFIG, seed=3, dtype="float32"), before + 1)
    ask(client, [*ASKED, {"role": "assistant", "content": said}, *ASKED])
    engine.load(params(), before + 2)
    (sample,) = samples(server, "versions")
    (first, count), (second, rest) = sample["weight_versions"]
    assert (first, second) == (before, before + 1) and count == 12 and rest == len(sample["token_ids"]) - 12
    assert np.sum(np.array(sample["logprobs"]) != 0) == 24


@pytest.mark.parametrize("name", ["-first", "a b", "ü", "a" * 129, "a%2Fb"])
def test_a_bad_name_is_refused(server, name):
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as error:
        ask(client_of(server, name))
    assert error.value.body["message"]
    if name.isascii():
        with pytest.raises(openai.BadRequestError, match="the session's name is"):
            ask(client_of(server, name, by_header=True))


def test_two_names_are_refused(server):
    client = client_of(server, "one").with_options(default_headers={"X-Session": "other"})
    with pytest.raises(openai.BadRequestError, match="name 2 sessions: 'other' and 'one'"):
        ask(client)


def test_two_headers_are_refused(server):
    headers = [("X-Session", "one"), ("X-Session", "other")]
    url, body = f"{server.url}/v1/chat/completions", {"model": NAME, "messages": ASKED, "max_tokens": 3}
    assert server.http.post(url, json=body, headers=headers[:1]).status_code == 200
    response = server.http.post(url, json=body, headers=headers)
    assert response.status_code == 400 and "name 2 sessions: 'one' and 'other'" in response.text


def test_a_session_that_was_deleted_begins_anew(server):
    client = client_of(server, "deleted")
    ask(client)
    assert server.http.delete(f"{server.url}/v1/sessions/deleted").json() == {"name": "deleted", "deleted": True}
    assert server.get("/v1/sessions/deleted").status_code == 404
    assert server.http.delete(f"{server.url}/v1/sessions/deleted").status_code == 404
    ask(client)
    assert samples(server, "deleted")[0]["calls"] == [0]


@pytest.mark.parametrize("query", ["?samples=whole", "?branches=first"])
def test_an_unknown_choice_is_named(server, query):
    ask(client_of(server, "queries"))
    response = server.get(f"/v1/sessions/queries{query}")
    assert response.status_code == 400 and "expected" in response.json()["error"]["message"]


def test_the_model_is_listed_below_a_session_too(server):
    assert client_of(server, "models").models.list().data[0].id == NAME


def test_the_oldest_idle_sessions_leave_and_others_need_the_admins_key():
    with running(limits=Limits(sessions=3), keys=Keys(admin="secret")) as server:
        for i in range(5):
            ask(client_of(server, f"s{i}"))
        assert server.get("/v1/sessions").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        found = server.http.get(f"{server.url}/v1/sessions", headers=headers).json()["sessions"]
        assert [session["name"] for session in found] == ["s2", "s3", "s4"]
        assert server.http.delete(f"{server.url}/v1/sessions/s2").status_code == 401


def test_a_server_without_sessions_says_so():
    with running(limits=Limits(sessions=0)) as server, pytest.raises(openai.NotFoundError, match="--max_sessions"):
        ask(client_of(server, "none"))


def names_in(server) -> list[str]:
    return [session["name"] for session in server.get("/v1/sessions").json()["sessions"]]


def test_calls_that_are_refused_leave_nothing_and_push_nothing_out():
    with running(limits=Limits(sessions=1, choices=2)) as server:
        ask(client_of(server, "first"))
        for i, (error, asked) in enumerate(
            [
                (openai.BadRequestError, {"messages": [{"role": "nobody", "content": "words"}]}),
                (openai.NotFoundError, {"model": "other"}),
                (openai.RateLimitError, {"n": 3}),
            ]
        ):
            with pytest.raises(error):
                ask(client_of(server, f"s{i}"), **asked)
        assert names_in(server) == ["first"]


def test_long_messages_count_where_the_prompt_is_given_as_tokens(monkeypatch):
    monkeypatch.setattr("ling_jax.serve.recorded.MAX_BYTES", 200_000)
    long = [{"role": "user", "content": "x" * 150_000}]
    with running() as server:
        for i in range(3):
            ask(client_of(server, f"s{i}"), long, extra_body={"prompt_token_ids": [5, 6, 7]})
        assert names_in(server) == ["s2"]
        ask(
            client_of(server, "s3"),
            [{"role": "user", "content": "{[, " * 10_000}],
            extra_body={"prompt_token_ids": [5]},
        )
        assert names_in(server) == ["s2", "s3"]  # text counts as text
        ask(client_of(server, "s2"), long, extra_body={"prompt_token_ids": [5, 6, 7]})
        with pytest.raises(openai.ConflictError, match=r"has recorded 30\d{4} bytes"):
            ask(client_of(server, "s2"))
