"""Promises of the n-gram losses: counted by hand, and true probabilities."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.data import ngram
from ling_jax.data.ngram import SMOOTHINGS, bigram_probabilities, count_bigrams, ngram_losses


def batch(tokens: list[list[int]], segment_ids: list[list[int]]) -> dict[str, np.ndarray]:
    return {"tokens": np.array(tokens), "segment_ids": np.array(segment_ids)}


def test_transitions_inside_segments_are_counted_and_no_others():
    counts = np.zeros((4, 4), int)
    rows = batch([[0, 1, 2, 0, 1, 3], [3, 3, 3, 0, 0, 0]], [[1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0]])
    count_bigrams(counts, rows["tokens"], rows["segment_ids"])
    expected = np.zeros((4, 4), int)
    expected[0, 1] = 2  # once in either segment of the first row
    expected[2, 0] = 1
    expected[3, 3] = 2
    assert counts.tolist() == expected.tolist()


def test_losses_by_hand(monkeypatch):
    # Transitions 0>1, 1>0, 0>1, 1>2: next tokens 1, 0, 1, 2. Held out: 0>1, 1>1, and 2>0 where 2 has no successor.
    train, held_out = batch([[0, 1, 0, 1, 2]], [[1] * 5]), batch([[0, 1, 1, 2, 0]], [[1, 1, 1, 2, 2]])
    unigram = [2 / 7, 3 / 7, 2 / 7]  # (count + 1) / (4 + 3)
    monkeypatch.setattr(ngram, "SMOOTHINGS", ("witten_bell",))
    losses = ngram_losses([train], [held_out], 3)
    assert math.isclose(losses["unigram"], -np.log([unigram[1], unigram[1], unigram[0]]).mean())
    # After 0: two times 1, one kind. After 1: 0 and 2 once, two kinds. After 2: nothing.
    bigram = [(2 + 1 * unigram[1]) / (2 + 1), (0 + 2 * unigram[1]) / (2 + 2), unigram[0]]
    assert math.isclose(losses["bigram"], -np.log(bigram).mean())


def test_kneser_ney_by_hand(monkeypatch):
    monkeypatch.setattr(ngram, "_discounts", lambda counts: np.array([0, 0.5, 0.75, 1.25]))
    counts = np.array([[0, 2, 5], [1, 0, 0], [0, 0, 0]])
    continuation = [2 / 6, 2 / 6, 2 / 6]  # each token follows one other: (1 + 1) / (3 + 3)
    found = bigram_probabilities(counts, np.array([0, 0, 0, 1, 2]), np.array([0, 1, 2, 0, 2]), "kneser_ney")
    mass = 0.75 + 1.25
    expected = [
        mass * continuation[0] / 7,
        (2 - 0.75 + mass * continuation[1]) / 7,
        (5 - 1.25 + mass * continuation[2]) / 7,
        (1 - 0.5 + 0.5 * continuation[0]) / 1,
        continuation[2],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_discounts_are_of_chen_and_goodman():
    counts = np.array([1] * 8 + [2] * 4 + [3] * 2 + [4] * 1 + [0] * 10).reshape(5, 5)
    y = 8 / (8 + 2 * 4)
    np.testing.assert_allclose(ngram._discounts(counts), [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2])


@given(st.lists(st.integers(0, 6), min_size=25, max_size=25), st.sampled_from(SMOOTHINGS))
def test_probabilities_are_positive_and_sum_to_one(counts, smoothing):
    token, following = np.indices((5, 5)).reshape(2, -1)
    found = bigram_probabilities(np.array(counts).reshape(5, 5), token, following, smoothing).reshape(5, 5)
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


def test_bigram_approaches_the_entropy_of_its_source():
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.full(8, 0.3), size=8)
    tokens = np.zeros((320, 64), int)
    for t in range(1, 64):
        tokens[:, t] = [rng.choice(8, p=chain[token]) for token in tokens[:, t - 1]]
    batches = [batch(part, np.ones_like(part)) for part in np.split(tokens, 10)]
    losses = ngram_losses(batches[:9], batches[9:], 8)
    truth = -np.log(chain[tokens[288:, :-1], tokens[288:, 1:]]).mean()
    assert truth <= losses["bigram"] + 0.01 and losses["bigram"] < truth + 0.02 < losses["unigram"]


@pytest.mark.parametrize("best", SMOOTHINGS)
def test_smoothing_is_chosen_on_training_rows_alone(monkeypatch, best):
    seen = []

    def nats(counts, predicted, smoothing):
        seen.append((int(counts.sum()), int(predicted.sum()), smoothing))
        return 1.0 if smoothing == best else 2.0

    monkeypatch.setattr(ngram, "_bigram_nats", nats)
    train = [batch([[0, 1, 2]] * 6, [[1, 1, 1]] * 6)] * 4  # 24 rows of 2 transitions; rows 7, 15 and 23 choose
    ngram_losses(train, [batch([[0, 1]] * 5, [[1, 1]] * 5)], 3)
    assert seen == [(42, 6, name) for name in SMOOTHINGS] + [(48, 5, best)]


def test_what_cannot_be_counted_is_an_error():
    rows = [batch([[0, 1]], [[1, 1]])]
    with pytest.raises(ValueError, match="vocab_size is 4097; counts are dense tables, of at most 4096"):
        ngram_losses(rows, rows, 4097)
    with pytest.raises(ValueError, match="no next token inside a segment"):
        ngram_losses(rows, [batch([[0, 1]], [[1, 2]])], 2)
