"""Losses of n-gram models, a baseline for small language models."""

from collections.abc import Iterable

import numpy as np

from ling_jax.data.mixture import Batch

MAX_VOCAB_SIZE = 4096  # counts are dense: each of three int32 tables has 64 MiB at this size
CHOICE_EVERY = 8  # every eighth training row chooses the smoothing
SMOOTHINGS = ("kneser_ney", "absolute", "witten_bell")


def ngram_losses(train_batches: Iterable[Batch], held_out_batches: Iterable[Batch], vocab_size: int) -> dict:
    """{"unigram", "bigram"}: mean nats per predicted token of the held-out batches. Both iterables are finite.

    As in training, the predicted tokens are the next tokens inside a segment. The unigram model has add-one smoothing.
    The bigram model has the smoothing of `bigram_probabilities` that is best on every eighth training row with the
    counts of the other rows; then it counts all rows. Raises ValueError on a vocabulary above 4096, and where no token
    is predicted.
    """
    if vocab_size > MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {vocab_size}; counts are dense tables, of at most {MAX_VOCAB_SIZE} tokens")
    counts, choice, held_out = (np.zeros((vocab_size, vocab_size), np.int32) for _ in range(3))
    num_rows = 0
    for batch in train_batches:
        chooses = (num_rows + np.arange(len(batch["tokens"]))) % CHOICE_EVERY == CHOICE_EVERY - 1
        num_rows += len(chooses)
        count_bigrams(counts, batch["tokens"][~chooses], batch["segment_ids"][~chooses])
        count_bigrams(choice, batch["tokens"][chooses], batch["segment_ids"][chooses])
    for batch in held_out_batches:
        count_bigrams(held_out, batch["tokens"], batch["segment_ids"])
    if not counts.any() or not held_out.any():
        raise ValueError("no next token inside a segment in the training or held-out batches; give more documents")
    smoothing = min(SMOOTHINGS, key=lambda name: _bigram_nats(counts, choice, name))
    counts += choice
    num_predicted = held_out.sum()
    unigram_nats = -(held_out.sum(axis=0) @ np.log(unigram_probabilities(counts)))
    return {
        "unigram": float(unigram_nats / num_predicted),
        "bigram": float(_bigram_nats(counts, held_out, smoothing) / num_predicted),
    }


def count_bigrams(counts: np.ndarray, tokens: np.ndarray, segment_ids: np.ndarray) -> None:
    """Adds the transitions inside segments of rows [B, T] to counts [token, next token]."""
    inside = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] != 0)
    np.add.at(counts, (tokens[:, :-1][inside], tokens[:, 1:][inside]), 1)


def unigram_probabilities(counts: np.ndarray) -> np.ndarray:
    """Add-one smoothed probabilities [V] of each token as the next one."""
    return _add_one(counts.sum(axis=0))


def bigram_probabilities(counts: np.ndarray, token: np.ndarray, following: np.ndarray, smoothing: str) -> np.ndarray:
    """p(following | token) [n] for pairs of tokens [n], interpolated with a lower order; it sums to 1 over `following`.

        p(w | v) = (c(v, w) - d(c(v, w)) + mass(v) lower(w)) / total(v),   lower(w) for a v never seen

    "absolute" subtracts the discounts of modified Kneser-Ney (Chen and Goodman 1999) from the counts; mass(v) is their
    sum over w. "kneser_ney" does the same, and `lower` counts the tokens that w follows instead of w. "witten_bell"
    subtracts nothing and adds mass(v), the number of different w after v, to the total.
    """
    total = counts.sum(axis=1, dtype=np.float64)
    if smoothing == "witten_bell":
        discounts = np.zeros(4)
        mass = (counts > 0).sum(axis=1)
        total += mass
    else:
        discounts = _discounts(counts)
        exactly = [(counts == 1).sum(axis=1), (counts == 2).sum(axis=1), (counts >= 3).sum(axis=1)]
        mass = discounts[1:] @ exactly
    kept = counts[token, following] - discounts[np.minimum(counts[token, following], 3)]
    lower = _add_one((counts > 0).sum(axis=0)) if smoothing == "kneser_ney" else unigram_probabilities(counts)
    seen = np.maximum(total[token], 1)
    return np.where(total[token] > 0, (kept + mass[token] * lower[following]) / seen, lower[following])


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts [4] of counts 0, 1, 2 and more: D_k = k - (k+1) Y n_{k+1} / n_k, Y = n_1 / (n_1 + 2 n_2)."""
    n = np.array([np.count_nonzero(counts == k) for k in range(1, 5)], np.float64)
    k = np.arange(1, 4)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = k - (k + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:-1]
    # Small tables without an estimate get a usual value. No discount is 0, or unseen tokens would have probability 0.
    estimate = np.where(np.isfinite(estimate), estimate, 0.75)
    return np.array([0, *np.clip(estimate, 0.1, k)])


def _bigram_nats(counts: np.ndarray, predicted: np.ndarray, smoothing: str) -> float:
    token, following = np.nonzero(predicted)
    return -(predicted[token, following] @ np.log(bigram_probabilities(counts, token, following, smoothing)))


def _add_one(counts: np.ndarray) -> np.ndarray:
    return (counts + 1) / (counts.sum() + len(counts))
