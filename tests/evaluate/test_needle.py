"""A code hidden in texts of given lengths, counted in the tokens of any tokenizer."""

import pytest

from ling_jax.chat.template import ChatTemplate
from ling_jax.checkpoint.folder import Loaded
from ling_jax.data.tokenizer import train_bpe
from ling_jax.envs import is_held_out, parse_action
from ling_jax.envs.reasoning.needle import SENTENCES, make_task, needle_task, reset, solution, step
from ling_jax.evaluate.answers import Verdict
from ling_jax.evaluate.needle import (
    check_table,
    default_lengths,
    finds_code,
    heat_map,
    make_needles,
    needle_metrics,
    needle_record,
)
from tests.helpers.tiny import tiny_config

BYTES = train_bpe(["a"], 263)
MERGES = train_bpe(SENTENCES[::7], 2000)
CONFIG = tiny_config(max_length=40_000)


def model_of(tokenizer, *, chat=True):
    end = frozenset({tokenizer.token_to_id("<|role_end|>")}) if chat else frozenset()
    return Loaded(None, CONFIG, tokenizer, ChatTemplate(), end)


@pytest.mark.parametrize("tokenizer", [BYTES, MERGES], ids=["bytes", "merges"])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_prompts_have_the_length_asked_for_in_the_models_tokens(tokenizer, chat):
    model = model_of(tokenizer, chat=chat)
    assert model.is_chat == chat
    needles = make_needles(model, [256, 1024, 4096], [0, 0.5, 1], 2, max_new_tokens=32)
    assert [(n.length, n.depth) for n in needles[::2]] == [(l, d) for l in (256, 1024, 4096) for d in (0, 0.5, 1)]
    for needle in needles:
        assert needle.length - 0.15 * 256 - 0.05 * needle.length <= len(needle.prompt) <= needle.length
        text = tokenizer.decode(needle.prompt, skip_special_tokens=False)
        assert needle.task.prompt in text and needle.task.hidden["answer"] in text


def test_the_longest_length_fits():
    (needle,) = make_needles(model_of(MERGES), [32_768], [0.5], 1, max_new_tokens=32)
    assert 0.97 * 32_768 <= len(needle.prompt) <= 32_768


@pytest.mark.parametrize("depth", [0, 0.25, 0.5, 1])
def test_the_code_stands_at_its_depth_and_the_question_at_the_end(depth):
    task = needle_task(5, 400, depth)
    text, question = task.prompt.rsplit("\n", 1)
    name = question.removeprefix("What is the code of the ").split("?")[0]
    fact = f"The code of the {name} is {task.hidden['answer']}."
    assert text.count(fact) == 1 and text.count("The code of") == 2
    assert text.index(fact) / len(text) == pytest.approx(depth, abs=0.02)


def test_tasks_are_held_out_seeded_and_distinct():
    model = model_of(BYTES)
    first, again, other = (
        make_needles(model, [256, 512], [0, 1], 20, max_new_tokens=8, seed=seed) for seed in (0, 0, 1000)
    )
    assert first == again
    assert all(is_held_out(needle.task) for needle in first)
    ids = {needle.task.id for needle in first}
    assert len(ids) == len(first) == 80 and not ids & {needle.task.id for needle in other}
    assert not ids & {make_task(seed, difficulty).id for seed in range(200) for difficulty in (1, 2, 3)}


def test_only_the_code_that_is_asked_for_is_right():
    task = make_task(0, 3)
    code = task.hidden["answer"]
    other = next(word.strip(".") for word in task.prompt.split() if word.strip(".").isdecimal() and code not in word)

    def outcome(text):
        return step(reset(task, 0), parse_action(text))[1].rewards["outcome"]

    assert solution(task) == (code,)
    for right in (code, f"The code is {code}.", f"<think>{other}? no</think>{code}", f"{code}, so {code}"):
        assert outcome(right) == 1, right
    for wrong in ("", other, f"{code} {other}", f"<think>{code}</think>", f"1{code}", task.prompt):
        assert outcome(wrong) == 0, wrong


def test_the_table_counts_answers_by_length_and_depth():
    needles = make_needles(model_of(BYTES), [256, 512], [0, 1], 2, max_new_tokens=8)
    right = [n.length == 256 or n.depth == 1 for n in needles]
    texts = [n.task.hidden["answer"] if good else "no" for n, good in zip(needles, right, strict=True)]
    records = [needle_record(needle, i % 2) for i, needle in enumerate(needles)]
    assert [record["id"] for record in records[:3]] == ["256/0/0", "256/0/1", "256/1/0"]
    verdicts = [Verdict(float(finds_code(*pair)), "") for pair in zip(texts, records, strict=True)]
    metrics = {metric.name: metric for metric in needle_metrics(needles, verdicts)}
    assert {name: metric.value for name, metric in metrics.items()} == {
        "accuracy/256": 1, "accuracy/512": 0.5, "accuracy/256/0": 1, "accuracy/256/1": 1, "accuracy/512/0": 0,
        "accuracy/512/1": 1, "distinct": 8,
    }  # fmt: skip
    assert metrics["accuracy/512"].n == 4 and metrics["accuracy/512/0"].n == 2 and metrics["distinct"].n == 8
    assert [line.split() for line in heat_map(needles, verdicts).splitlines()] == [
        ["tokens", "depth", "0", "depth", "1"],
        ["256", "100", "100"],
        ["512", "0", "100"],
    ]


def test_a_task_counted_twice_shows_as_one_less_distinct():
    (needle,) = make_needles(model_of(BYTES), [256], [0], 1, max_new_tokens=8)
    (distinct,) = [m for m in needle_metrics([needle, needle], [Verdict(1.0, "")] * 2) if m.name == "distinct"]
    assert (distinct.value, distinct.n) == (1, 2)


def test_lengths_that_no_table_has_are_refused():
    model = model_of(BYTES)
    assert default_lengths(40_000, 128) == [256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
    assert default_lengths(1024, 128) == [256, 512]
    for lengths, message in (
        ([64], "--lengths has 64; the shortest prompt, of one sentence, has"),
        ([39_980], "--lengths has 39980; with 32 new tokens it passes the model's context of 40000"),
        ([], "the model's context is 40000 tokens, too short"),
    ):
        with pytest.raises(ValueError, match=message):
            make_needles(model, lengths, [0], 1, max_new_tokens=32)
    for lengths, depths, message in (
        ([0], [0.5], "--lengths has 0; expected tokens"),
        ([256, 256], [0.5], "--lengths has 256; expected tokens, at least 1, each once"),
        ([256], [1.5], "--depths has 1.5; expected shares from 0 to 1"),
        ([256], [], "--depths is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            check_table(lengths, depths)
