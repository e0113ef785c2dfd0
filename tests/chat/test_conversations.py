"""Conversations become rows in which only what the assistant says is learnt."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.chat.conversations import prompt_of, tokenize_conversations
from ling_jax.chat.template import ChatTemplate
from ling_jax.data import PackedRows, TokenDocuments, open_documents, pack_plan, packed_rows, train_bpe, validate_batch
from ling_jax.data.json_lines import read_objects
from ling_jax.data.packing import IGNORED_LABEL
from ling_jax.data.sources import is_held_out
from ling_jax.model.transformer import loss_sums
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

BYTES = train_bpe(["a"], 263)  # no merges: a token is a byte or a special one


def said(*texts):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


def tokenized(records, folder, **options):
    options = dict(longest=200, held_out_fraction=0.0, digest="") | options
    pairs = [(f"chats.jsonl, line {i}", record) for i, record in enumerate(records, start=1)]
    return tokenize_conversations(pairs, BYTES, ChatTemplate(), folder, source="chats.jsonl", **options)


def test_the_loss_tokens_of_a_conversation_counted_by_hand(tmp_path):
    messages = [
        {"role": "user", "content": "b+d="},
        {"role": "assistant", "content": "get b"},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "A:9"},
    ]
    tokenized([{"messages": messages}], tmp_path / "out")
    documents = open_documents(tmp_path / "out" / "train")
    # <role> SYSTEM </role> "detailed thinking off" <|role_end|>: 1 + 6 + 1 + 21 + 1 = 30
    # <role> HUMAN </role> "b+d=" <|role_end|>: 1 + 5 + 1 + 4 + 1 = 12;  <role> ASSISTANT </role>: 1 + 9 + 1 = 11
    # "get b" <|role_end|>: 5 + 1 = 6, learnt
    # <role> OBSERVATION </role>: 13; "\n<tool_response>\n7\n</tool_response>" <|role_end|>: 1+15+1+1+1+16+1 = 36
    # <role> ASSISTANT </role>: 11;  "A:9" <|role_end|>: 3 + 1 = 4, learnt
    wanted = [False] * (30 + 12 + 11) + [True] * 6 + [False] * (13 + 36 + 11) + [True] * 4
    assert documents.trained.tolist() == wanted
    row = packed_rows(tmp_path / "out" / "train", 160, seed=0)[0]
    learnt = row["labels"][row["labels"] != IGNORED_LABEL]
    assert BYTES.decode(learnt.tolist(), skip_special_tokens=False) == "get b<|role_end|>A:9<|role_end|>"


def test_packed_conversations_have_the_loss_that_they_have_alone(tmp_path):
    records = [said("one", "two"), said("a longer question", "yes"), said("x", "y", "and?", "z" * 30)]
    tokenized(records, tmp_path / "out")
    documents = open_documents(tmp_path / "out" / "train")
    packed = PackedRows(documents, pack_plan(documents.lengths, 256, seed=0))
    assert len(packed) == 1
    alone = [
        PackedRows(documents, pack_plan(np.where(np.arange(3) == i, documents.lengths, 0), 256, seed=0))[0]
        for i in range(3)
    ]
    batch = {name: np.stack([row[name] for row in [packed[0], *alone]]) for name in alone[0]}
    validate_batch(batch, vocab_size=263, max_length=512)
    config = tiny_config(num_layers=2, vocab_size=263)
    params = random_params(config, dtype="float32")
    run = quick_jit(lambda **batch: loss_sums(params, config=config, **batch)[0])

    def sums(kept):
        labels = np.where(kept[:, None], batch["labels"], IGNORED_LABEL)
        found = run(**(batch | {"labels": labels}))
        return float(found.main), int(found.main_count)

    together, apart = sums(np.array([True, False, False, False])), sums(np.array([False, True, True, True]))
    assert together[1] == apart[1] == int(documents.trained.sum()) == 4 + 4 + 2 + 31
    assert together[0] == pytest.approx(apart[0], rel=1e-5)  # float32


BAD = {
    "an unknown role": ({"messages": [{"role": "humn", "content": "Hi"}]}, "role is 'humn'; expected one of"),
    "no messages": ({"text": "Hi"}, "expected an object with a field 'messages'"),
    "no word of the assistant": (said("Hi"), "no token to learn: the assistant says nothing"),
    "tools that are no list": (said("Hi", "Ho") | {"tools": "get"}, "expected a list of objects"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_record_is_an_error_with_its_line_or_is_counted(name, tmp_path, capsys):
    record, message = BAD[name]
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 2") as error:
        tokenized([said("Hi", "Ho"), record], tmp_path / "out")
    assert message in str(error.value) and "let unusable be 'drop'" in str(error.value)
    assert not (tmp_path / "out").exists()
    meta = tokenized([said("Hi", "Ho"), record, record], tmp_path / "out", unusable="drop")
    assert meta["dropped"] == {"too_long": 0, "unusable": 2} and meta["train"]["documents"] == 1
    assert "first dropped as unusable: chats.jsonl, line 2" in capsys.readouterr().out


def test_a_conversation_longer_than_a_row_is_dropped_and_counted_or_an_error(tmp_path):
    records = [said("Hi", "Ho"), said("Hi", "x" * 200)]
    meta = tokenized(records, tmp_path / "out")
    assert meta["dropped"] == {"too_long": 1, "unusable": 0} and meta["train"]["documents"] == 1
    with pytest.raises(ValueError, match=r"line 2: 252 tokens; a row has 200; .* let too_long be 'drop'"):
        tokenized(records, tmp_path / "other", too_long="error")
    with pytest.raises(ValueError, match="has no conversation that can be learnt"):
        tokenized(records[1:], tmp_path / "other")
    with pytest.raises(ValueError, match="too_long is 'cut'; it is one of drop, error"):
        tokenized(records, tmp_path / "other", too_long="cut")


def test_a_line_that_is_no_json_is_always_an_error(tmp_path):
    (tmp_path / "chats.jsonl").write_text(json.dumps(said("Hi", "Ho")) + "\n{'messages':\n")
    pairs = read_objects(tmp_path / "chats.jsonl", "an object")
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 2 is not JSON"):
        tokenize_conversations(
            pairs, BYTES, ChatTemplate(), tmp_path / "out", source="", digest="", longest=9, held_out_fraction=0.0
        )


def test_answers_to_one_prompt_are_on_one_side_of_the_split(tmp_path):
    records = [said(f"question {i}", f"answer {j}") for i in range(20) for j in range(3)]
    meta = tokenized(records, tmp_path / "out", held_out_fraction=0.4)
    held_out = sum(is_held_out(prompt_of(record), 0.4) for record in records)
    assert meta["held_out"]["documents"] == held_out and held_out % 3 == 0 and 0 < held_out < 60


def test_of_few_conversations_those_with_the_last_prompt_are_held_out(tmp_path, capsys):
    records = [said(prompt, answer) for prompt, answer in (("q", "a"), ("last", "b"), ("r", "c"), ("last", "d"))]
    assert not any(is_held_out(prompt_of(record), 0.001) for record in records)
    meta = tokenized(records, tmp_path / "out", held_out_fraction=0.001)
    assert meta["train"]["documents"] == meta["held_out"]["documents"] == 2 and meta["held_out_by"] == "position"
    assert "held out is the last one" in capsys.readouterr().out
    for split, answers in (("train", "ac"), ("held_out", "bd")):
        documents = open_documents(tmp_path / "out" / split)
        learnt = [
            int(documents.doc(i)[documents.trained[documents.offsets[i] : documents.offsets[i + 1]]][0]) for i in (0, 1)
        ]
        assert BYTES.decode(learnt) == answers
    alone = tokenized(records[:1], tmp_path / "alone", held_out_fraction=0.999)  # a conversation is not cut
    assert alone["train"]["documents"] == 1 and "held out is nothing" in capsys.readouterr().out


def test_another_template_or_another_row_makes_another_corpus(tmp_path):
    records = [said("Hi", "Ho")]
    meta = tokenized(records, tmp_path / "out")
    assert tokenized(records, tmp_path / "out") == meta
    with pytest.raises(ValueError, match="holds another corpus: longest was 200 and is 100"):
        tokenized(records, tmp_path / "out", longest=100)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(20, 40), st.integers(0, 2**32 - 1))
def test_a_token_is_a_label_once_where_it_is_learnt_and_never_else(lengths, size, seed):
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    tokens, trained = np.arange(1, offsets[-1] + 1), rng.random(offsets[-1]) < 0.5  # all tokens are different
    documents = TokenDocuments(Path("memory"), tokens, offsets, 300, 0, "", trained)
    rows = PackedRows(documents, pack_plan(np.array(lengths), size, seed))
    labels = np.concatenate([rows[i]["labels"] for i in range(len(rows))])
    assert sorted(labels[labels != IGNORED_LABEL]) == tokens[trained].tolist()
