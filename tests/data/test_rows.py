"""Rows hold every token once, and a batch is a pure function of its step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.data import (
    TextFiles,
    batches,
    documents,
    global_batch,
    load_tokenizer,
    mixture,
    pack_plan,
    packed_rows,
    save_tokenizer,
    tokenize,
    train_bpe,
    validate_batch,
)

TEXTS = [f"Document {i}: " + "the quick brown fox " * (i % 7) + "<|endoftext|> end.\n" for i in range(60)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(tokenizer, its tokenised folder) of 60 small files."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts").mkdir()
    for i, text in enumerate(TEXTS):
        (folder / "texts" / f"{i:02d}.txt").write_text(text)
    source = TextFiles(str(folder / "texts"))
    save_tokenizer(train_bpe(documents(source), 300), folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenize(source, tokenizer, folder / "index", held_out_fraction=0.2)
    return tokenizer, folder / "index"


@settings(max_examples=50)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(2, 16), st.integers(0, 5))
def test_every_token_once_per_epoch(lengths, size, seed):
    plan = pack_plan(np.asarray(lengths), size, seed)
    seen = [np.zeros(length, int) for length in lengths]
    for doc, start, length in zip(plan.piece_doc, plan.piece_start, plan.piece_length, strict=True):
        seen[doc][start : start + length] += 1
    assert all((counts == 1).all() for counts in seen)
    rows = np.add.reduceat(plan.piece_length, plan.row_offsets[:-1])
    assert (rows <= size).all()


def test_rows_restart_positions_in_each_document(corpus):
    rows = packed_rows(corpus[1] / "train", 32, seed=0)
    for i in range(len(rows)):
        row = rows[i]
        starts = np.flatnonzero(np.diff(row["segment_ids"], prepend=0) & (row["segment_ids"] > 0))
        assert (row["positions"][starts] == 0).all()
        assert (row["labels"][row["segment_ids"] == 0] == -100).all()
        validate_batch({k: v[None] for k, v in row.items()}, vocab_size=300, max_length=32)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_read_the_batch_of_one(corpus, hosts):
    dataset = mixture([packed_rows(corpus[1] / "train", 32, seed=0)], [1.0], seed=3)
    whole = global_batch(dataset, 1_000_000, 8)
    parts = [global_batch(dataset, 1_000_000, 8, part) for part in np.split(np.arange(8), hosts)]
    for name, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


def test_a_later_start_reads_the_same_batches(corpus):
    dataset = mixture([packed_rows(corpus[1] / "train", 32, seed=0)], [1.0], seed=3)
    late = list(batches(dataset, batch_size=4, start_step=5, stop_step=8))
    assert [step for step, _ in late] == [5, 6, 7]
    for step, batch in late:
        np.testing.assert_array_equal(batch["tokens"], global_batch(dataset, step, 4)["tokens"])


@settings(max_examples=50)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(corpus, text):
    tokenizer = corpus[0]
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_special_string_in_a_document_is_plain_text(corpus):
    tokenizer, index = corpus
    eos = tokenizer.token_to_id("<|endoftext|>")
    rows = packed_rows(index / "train", 32, seed=0)
    for doc in range(len(rows.documents)):
        tokens = rows.documents.doc(doc)
        assert tokens[-1] == eos and (tokens[:-1] != eos).all()


def test_an_empty_corpus_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        list(documents(TextFiles(str(tmp_path))))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(documents(TextFiles(str(tmp_path / "nowhere"))))
