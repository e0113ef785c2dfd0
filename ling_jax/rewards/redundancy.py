"""The redundancy penalty: the share of an answer that repeats itself."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ling_jax.rewards.bounds import check_reward, check_same_length

REDUNDANCY_WEIGHT = 0.2  # our choice: below the reward of a right answer


def flag_repeats(tokens: Sequence[int], sentence_ids: Sequence[int], *, n: int = 4, overlap: float = 0.8) -> np.ndarray:
    """Whether each sentence repeats earlier ones, [sentences] bool; a rule for runs without a judge.

    A sentence is flagged if at least `overlap` of its token n-grams occur in earlier sentences. Sentences of fewer than
    n tokens are never flagged. `tokens`, `sentence_ids` [T]; a negative id means no sentence. n and `overlap` are our
    choice: one edited word still flags a long sentence, and a shared phrase does not.
    """
    check_same_length(tokens=tokens, sentence_ids=sentence_ids)
    sentences: list[list[int]] = [[] for _ in range(max(sentence_ids, default=-1) + 1)]
    for token, sentence in zip(tokens, sentence_ids, strict=True):
        if sentence >= 0:
            sentences[sentence].append(int(token))
    seen: set[tuple[int, ...]] = set()
    flags = np.zeros(len(sentences), bool)
    for i, sentence in enumerate(sentences):
        grams = [tuple(sentence[j : j + n]) for j in range(len(sentence) - n + 1)]
        flags[i] = bool(grams) and sum(gram in seen for gram in grams) >= overlap * len(grams)
        seen.update(grams)
    return flags


def count_flagged(flags: ArrayLike, sentence_ids: ArrayLike) -> int:
    """Number of tokens in flagged sentences; `flags` [sentences] from a judge or `flag_repeats`, `sentence_ids` [T].

    Raises ValueError if a sentence has no flag.
    """
    flags, sentence_ids = np.asarray(flags, bool), np.asarray(sentence_ids, np.int64)
    last = int(sentence_ids.max(initial=-1))
    if last >= len(flags):
        raise ValueError(f"flags are of {len(flags)} sentences, sentence_ids go to {last}; expected a flag of each")
    return int(flags[sentence_ids[sentence_ids >= 0]].sum())


def redundancy_rewards(flagged: ArrayLike, lengths: ArrayLike, *, weight: float = REDUNDANCY_WEIGHT) -> np.ndarray:
    """-weight · flagged / max(length, 1), [G] float64; both in tokens (Ling 2.6 report §3.1.2; the form is our choice).

    Raises ValueError if more tokens are flagged than the answer has.
    """
    check_same_length(flagged=flagged, lengths=lengths)
    share = np.asarray(flagged, np.float64) / np.maximum(check_reward(lengths, 0, np.inf, "lengths"), 1)
    return -weight * check_reward(share, 0, 1, "flagged / lengths")
