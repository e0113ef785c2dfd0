from pathlib import Path

import numpy as np
import pytest

from ling_jax.data import JoinedRows
from ling_jax.data.packing import PackedRows, pack_plan
from ling_jax.data.sources import TokenDocuments
from ling_jax.run.corpus import Corpus, with_short_sequences


@pytest.fixture
def packed():
    lengths = [3, 5, 2, 8, 1, 4, 6, 7, 2, 3]
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    documents = TokenDocuments(folder=None, tokens=tokens, offsets=offsets, vocab_size=99, eos_id=0, tokenizer="t")
    return lambda length: PackedRows(documents, pack_plan(np.asarray(lengths), length, 0))


def test_joined_rows_are_their_parts_with_documents_apart(packed):
    rows = packed(8)
    joined = JoinedRows(rows, 2)
    assert len(joined) == len(rows) // 2 and joined.sequence_length == 16
    for i in range(len(joined)):
        row, parts = joined[i], [rows[2 * i], rows[2 * i + 1]]
        for name in ("tokens", "labels", "positions"):
            np.testing.assert_array_equal(row[name], np.concatenate([part[name] for part in parts]))
        first, second = np.split(row["segment_ids"], 2)
        np.testing.assert_array_equal(first, parts[0]["segment_ids"])
        np.testing.assert_array_equal(second > 0, parts[1]["segment_ids"] > 0)
        assert not set(first[first > 0]) & set(second[second > 0])
    with pytest.raises(IndexError):
        joined[len(joined)]


def test_the_share_of_long_sequences_counts_sequences(packed, monkeypatch):
    """20 % of the sequences long and four short ones to a row: half of the rows are long."""
    made = {}

    def mixture(rows, weights, seed):
        made.update({type(source): weight for source, weight in zip(rows, weights, strict=True)})

    monkeypatch.setattr("ling_jax.data.packed_rows", lambda where, length, seed: packed(length))
    monkeypatch.setattr("ling_jax.data.mixture", mixture)
    corpus = Corpus(tokenizer=None, train=None, held_out=(), train_rows=1, train_tokens=1)
    lengths = dict(sequence_length=8, short_length=2)
    with_short_sequences(corpus, [Path("tokens")], [2.0], **lengths, long_share=0.2, seed=0)
    assert made == {PackedRows: pytest.approx(0.4), JoinedRows: pytest.approx(0.4)}
