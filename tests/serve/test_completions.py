"""Answers over the real socket, asked by OpenAI's own client."""

import asyncio
import json
import math

import numpy as np
import openai
import pytest

from ling_jax.engine import score
from tests.helpers.served import CONFIG, NAME, params, tokenizer

MESSAGES = [{"role": "user", "content": "some words"}]


def ask(server, **fields):
    fields = {"model": NAME, "messages": MESSAGES, "max_tokens": 20, "seed": 7} | fields
    return server.client().chat.completions.create(**fields)


def joined(chunks) -> tuple[str, str]:
    """(content, reason of the end) of the first choice of a stream."""
    chunks = [chunk for chunk in chunks if chunk.choices]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].choices[0].finish_reason


def test_the_model_is_listed(server):
    client = server.client()
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="model is 'gpt'; this server has 'tiny'"):
        client.models.retrieve("gpt")


def test_a_stream_is_the_whole_answer_in_pieces(server):
    whole, chunks = ask(server), list(ask(server, stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == (whole.choices[0].message.content, "length")
    assert chunks[0].choices[0].delta.role == "assistant" and len(chunks) > 3
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 20 and whole.usage.total_tokens == whole.usage.prompt_tokens + 20


def test_the_seed_decides_and_choice_i_has_the_seed_plus_i(server):
    several = ask(server, n=3).choices
    alone = [ask(server, seed=7 + i).choices[0].message.content for i in range(3)]
    assert [choice.message.content for choice in several] == alone and len(set(alone)) == 3
    streamed = ["", "", ""]
    for chunk in ask(server, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == alone


def test_without_a_seed_answers_differ_and_temperature_0_takes_the_likeliest(server):
    assert len({ask(server, seed=None).choices[0].message.content for _ in range(3)}) == 3
    cold = {ask(server, seed=seed, temperature=0).choices[0].message.content for seed in (1, 2)}
    assert len(cold) == 1


def test_a_stop_string_ends_the_answer_before_it(server):
    text = ask(server, max_tokens=60).choices[0].message.content
    stop = text[10:12]
    for choice in (
        ask(server, max_tokens=60, stop=stop).choices[0],
        ask(server, max_tokens=60, stop=[stop]).choices[0],
    ):
        assert choice.message.content == text[: text.index(stop)] and choice.finish_reason == "stop"
    assert joined(ask(server, max_tokens=60, stop=stop, stream=True)) == (text[: text.index(stop)], "stop")


def test_log_probs_are_those_of_the_model_as_float32(server):
    answer = ask(server, logprobs=True, temperature=0.5, extra_body={"return_token_ids": True})
    (choice,) = answer.choices
    rows, ids = choice.logprobs.content, choice.token_ids
    wanted = score(params(), [[*answer.prompt_token_ids, *ids]], CONFIG)[0]
    assert [row.logprob for row in rows] == np.asarray(wanted[-len(ids) :], np.float32).tolist()
    assert b"".join(bytes(row.bytes) for row in rows).decode(errors="replace") == choice.message.content
    assert choice.weight_versions == [[0, len(ids)]]


def test_top_log_probs_are_sorted_and_have_the_drawn_token_at_temperature_0(server):
    rows = ask(server, logprobs=True, top_logprobs=3, temperature=0, max_tokens=6).choices[0].logprobs.content
    assert len(rows) == 6
    for row in rows:
        logps = [top.logprob for top in row.top_logprobs]
        assert logps == sorted(logps, reverse=True) and len(logps) == 3 and row.logprob == logps[0]
    streamed = [
        row
        for chunk in ask(server, logprobs=True, top_logprobs=3, temperature=0, max_tokens=6, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for row in chunk.choices[0].logprobs.content
    ]
    assert streamed == rows


def test_token_ids_go_in_and_come_out(server):
    ids = tokenizer().encode("some words").ids
    fields = dict(model=NAME, max_tokens=10, seed=3)
    client, more = server.client(), {"return_token_ids": True}
    by_text = client.completions.create(prompt="some words", extra_body=more, **fields)
    by_ids = client.completions.create(prompt=ids, extra_body=more, **fields)
    by_field = client.completions.create(prompt="", extra_body=more | {"prompt_token_ids": ids}, **fields)
    assert by_text.choices == by_ids.choices == by_field.choices
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == ids and len(by_text.choices[0].token_ids) == 10
    chat = ask(server, extra_body=more)
    again = ask(
        server, messages=[{"role": "user", "content": "x"}], extra_body={"prompt_token_ids": chat.prompt_token_ids}
    )
    assert again.choices[0].message == chat.choices[0].message


def test_several_prompts_are_answered_in_their_order(server):
    fields = dict(model=NAME, max_tokens=8, seed=3)
    both = server.client().completions.create(prompt=["some", "words"], n=2, **fields).choices
    assert [choice.index for choice in both] == [0, 1, 2, 3]
    alone = server.client().completions.create(prompt="words", **fields | {"seed": 5})
    assert both[2].text == alone.choices[0].text


def test_echo_gives_the_prompt_and_its_log_probs(server):
    ids = tokenizer().encode("some words, and").ids
    scored = server.client().completions.create(model=NAME, prompt=ids, max_tokens=0, echo=True, logprobs=0)
    (choice,) = scored.choices
    assert choice.text == "some words, and" and choice.logprobs.token_logprobs[0] is None
    wanted = np.asarray(score(params(), [ids], CONFIG)[0], np.float32).tolist()
    assert choice.logprobs.token_logprobs[1:] == wanted[-len(ids) + 1 :]
    assert choice.logprobs.text_offset[:2] == [0, len(choice.logprobs.tokens[0])]


def test_echo_has_the_likeliest_tokens_beside_the_prompts(server):
    """As lm-eval asks for the log-likelihood of a choice."""
    ids = tokenizer().encode("some words, and").ids
    fields = dict(model=NAME, max_tokens=1, echo=True, temperature=0)
    scored = server.client().completions.create(prompt=[ids, ids[:3]], logprobs=1, **fields)
    plain = server.client().completions.create(prompt=[ids, ids[:3]], logprobs=0, **fields)
    assert scored.usage == plain.usage and scored.usage.completion_tokens == 2
    for found, wanted in zip(scored.choices, plain.choices, strict=True):
        assert found.text == wanted.text and found.logprobs.tokens == wanted.logprobs.tokens
        assert found.logprobs.token_logprobs == wanted.logprobs.token_logprobs
        for logp, top in list(zip(found.logprobs.token_logprobs, found.logprobs.top_logprobs, strict=True))[1:]:
            assert max(top.values()) >= logp
        assert max(found.logprobs.top_logprobs[-1].values()) == found.logprobs.token_logprobs[-1]
    with pytest.raises(openai.BadRequestError, match="max_tokens is at most 1"):
        server.client().completions.create(model=NAME, prompt=ids, max_tokens=2, echo=True, logprobs=1)


def test_a_completion_streams_as_it_is_whole(server):
    fields = dict(model=NAME, prompt="some", max_tokens=20, seed=5, logprobs=0, echo=True)
    whole = server.client().completions.create(**fields).choices[0]
    chunks = [chunk.choices[0] for chunk in server.client().completions.create(**fields, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text and chunks[-1].finish_reason == "length"
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [x for chunk in chunks for x in getattr(chunk.logprobs, name)] == getattr(whole.logprobs, name)


def test_fifty_streams_at_once_are_those_of_requests_alone(server):
    async def stream(client, seed):
        chunks = await client.chat.completions.create(
            model=NAME, messages=MESSAGES, max_tokens=16, seed=seed, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(stream(client, seed) for seed in range(50)))

    texts = asyncio.run(together())
    alone = [ask(server, seed=seed, max_tokens=16).choices[0].message.content for seed in range(0, 50, 9)]
    assert texts[::9] == alone and len(set(texts)) == 50


def test_tokens_of_texts_and_conversations(server):
    ids = server.post("/tokenize", {"prompt": "some <think>words"}).json()["tokens"]
    assert tokenizer().token_to_id("<think>") in ids
    assert server.post("/detokenize", {"tokens": ids}).json() == {"prompt": "some <think>words"}
    found = server.post("/tokenize", {"messages": MESSAGES}).json()
    chat = ask(server, max_tokens=1, extra_body={"return_token_ids": True})
    assert found["tokens"] == chat.prompt_token_ids and found["count"] == chat.usage.prompt_tokens


def test_thinking_and_effort_change_the_prompt(server):
    def prompt(**fields):
        ids = ask(server, max_tokens=1, extra_body={"return_token_ids": True} | fields).prompt_token_ids
        return server.post("/detokenize", {"tokens": ids}).json()["prompt"]

    assert "detailed thinking off" in prompt() and "detailed thinking off" in prompt(reasoning_effort="none")
    hard = prompt(reasoning_effort="high")
    assert "detailed thinking on" in hard and "thinking effort: high" in hard
    assert "detailed thinking on" in prompt(chat_template_kwargs={"enable_thinking": True})


def test_metrics_count_tokens_and_responses(server):
    def values():
        lines = server.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    before = values()
    ask(server, max_tokens=5)
    after = values()
    assert after["ling_generated_tokens_total"] == before["ling_generated_tokens_total"] + 5
    name = 'ling_responses_total{path="/v1/chat/completions",status="200"}'
    assert after[name] == before.get(name, 0) + 1 and after["ling_slots_in_use"] == 0
    assert after['ling_first_token_seconds_bucket{le="+Inf"}'] == after["ling_first_token_seconds_count"]
    assert all(math.isfinite(value) for value in after.values())
    health = server.get("/health").json()
    assert health["status"] == "ok" and health["weight_version"] == 0 and json.dumps(health)
