"""Weights that change under requests, over the real socket."""

import threading

import pytest

from ling_jax.checkpoint import save_hf
from ling_jax.data import save_tokenizer
from tests.helpers.served import CONFIG, NAME, params, tokenizer, write_model
from tests.helpers.tiny import random_params, tiny_config

MESSAGES = [{"role": "user", "content": "some words"}]
IDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A folder of the same model with other weights."""
    return write_model(tmp_path_factory.mktemp("other") / "hf", seed=1)


def call(server, phase: str, **body):
    response = server.post(f"/v1/weights/{phase}", body)
    return response.status_code, response.json()


def update(server, path, **body) -> int:
    """All phases; returns the new version."""
    for phase, fields in (("init", {}), ("start", {"mode": "keep"}), ("update", {"path": str(path)} | body)):
        assert call(server, phase, **fields)[0] == 200
    status, found = call(server, "finish")
    assert status == 200 and not found["paused"]
    return found["weight_version"]


def ask(server, **fields):
    fields = {"model": NAME, "messages": MESSAGES, "max_tokens": 30, "seed": 7, "extra_body": IDS} | fields
    return server.client().chat.completions.create(**fields)


class Stream(threading.Thread):
    """A stream of an answer under way, read in a thread."""

    def __init__(self, server, seed: int, tokens: int = 300):
        super().__init__()
        self.tokens, self.runs, self.finish = [], [], None
        self.begun = threading.Event()
        self._chunks = ask(server, seed=seed, max_tokens=tokens, stream=True, extra_body=IDS | {"ignore_eos": True})

    def run(self):
        for chunk in self._chunks:
            for choice in chunk.choices:
                self.tokens += getattr(choice, "token_ids", [])
                self.runs += getattr(choice, "weight_versions", [])
                self.finish = choice.finish_reason or self.finish
                if self.tokens:
                    self.begun.set()
        self.begun.set()


def started(server, count: int = 3, **sizes) -> list[Stream]:
    streams = [Stream(server, seed, **sizes) for seed in range(count)]
    for stream in streams:
        stream.start()
    for stream in streams:
        assert stream.begun.wait(30)
    return streams


def test_streams_go_on_with_new_weights_and_say_which(server, other):
    before = server.server.engine.version
    streams = started(server)
    assert update(server, other) == before + 1
    for stream in streams:
        stream.join()
        assert stream.finish == "length" and len(stream.tokens) == 300
        versions = [version for version, count in stream.runs for _ in range(count)]
        assert len(versions) == 300 and versions == sorted(versions) and {*versions} == {before, before + 1}


def test_new_weights_answer_as_a_server_that_began_with_them(server, other, tmp_path):
    first = update(server, write_model(tmp_path / "hf"), version=41)
    old = ask(server).choices[0]
    assert first == 41 and old.weight_versions == [[41, 30]]
    assert update(server, other) == 42
    new = ask(server).choices[0]
    assert new.weight_versions == [[42, 30]] and new.token_ids != old.token_ids
    assert update(server, tmp_path / "hf") == 43 and ask(server).choices[0].token_ids == old.token_ids
    assert server.get("/health").json()["weight_version"] == 43


def test_wait_lets_answers_end_and_new_ones_wait(server, other):
    call(server, "init")
    before = server.server.engine.version
    streams = started(server, tokens=100)
    assert call(server, "start", mode="wait") == (200, {"weight_version": before, "paused": True, "mode": "wait"})
    for stream in streams:
        stream.join(30)
        assert stream.finish == "length" and {version for version, _ in stream.runs} == {before}
    late = Stream(server, 9, tokens=20)
    late.start()
    assert not late.begun.wait(0.3)
    assert call(server, "update", path=str(other))[0] == call(server, "finish")[0] == 200
    late.join(30)
    assert {version for version, _ in late.runs} == {before + 1} and len(late.tokens) == 20


def test_abort_ends_answers_with_what_they_have(server):
    call(server, "init")
    streams = started(server)
    assert call(server, "start", mode="abort")[0] == 200
    for stream in streams:
        stream.join(30)
        assert stream.finish == "abort" and 0 < len(stream.tokens) < 300
    assert call(server, "abandon")[0] == 200
    assert len(ask(server).choices[0].token_ids) == 30


def test_phases_have_an_order(shared, server, other):
    call(server, "abandon")
    for phase, body in (("update", {"path": "x"}), ("finish", {})):
        status, found = call(server, phase, **body)
        assert status == 409 and "call /v1/weights/start first" in found["error"]["message"]
    call(server, "init")
    assert call(server, "start")[0] == 200
    assert call(server, "start")[0] == call(server, "init")[0] == call(server, "finish")[0] == 409
    assert call(server, "abandon")[1]["paused"] is False


def test_weights_of_another_model_are_refused_and_the_old_ones_stay(server, tmp_path):
    wider = tiny_config(**{name: getattr(CONFIG, name) for name in ("num_layers", "first_dense_layers", "vocab_size")},
                        max_length=2048, ffn_size=48, compute_dtype="float32", remat="none")  # fmt: skip
    save_hf(random_params(wider, dtype="float32"), wider, tmp_path / "wider")
    save_tokenizer(tokenizer(), tmp_path / "wider")
    broken = {**params(), "head": params()["head"] * float("nan")}
    save_hf(broken, CONFIG, tmp_path / "broken")
    save_tokenizer(tokenizer(), tmp_path / "broken")
    before = server.server.engine.version
    call(server, "init"), call(server, "start")
    for path, word in (("absent", "absent"), ("wider", "ffn_size 48")):
        status, found = call(server, "update", path=str(tmp_path / path))
        assert status == 400 and found["error"]["param"] == "path" and word in found["error"]["message"]
    status, found = call(server, "update", path=str(tmp_path / "broken"))
    if status == 200:
        status, found = call(server, "finish")
    assert status == 400 and "finite" in found["error"]["message"]
    assert call(server, "abandon") == (200, {"weight_version": before, "paused": False, "mode": None})
    assert ask(server).choices[0].weight_versions == [[before, 30]]
