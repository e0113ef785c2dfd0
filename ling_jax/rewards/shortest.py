"""Shortest correct response: the answer to a query, or its pruned form, to distil."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FLOOR_PERCENTILE = 5.0  # our choice


class Candidate(NamedTuple):
    """One answer to a query."""

    correct: bool
    tokens: int  # counted by the tokenizer of the student model
    derivation_tokens: int  # tokens before the final answer


def length_floor(lengths: ArrayLike, *, percentile: float = FLOOR_PERCENTILE) -> float:
    """The percentile of a domain's lengths, linearly interpolated; shorter texts are likely bare answers.

    Raises ValueError for an empty list.
    """
    if not np.size(lengths):
        raise ValueError("lengths is empty; expected the lengths of the domain's answers")
    return float(np.percentile(lengths, percentile))


def pick_shortest(candidates: Sequence[Candidate], floor: float = 0) -> int | None:
    """Index of the shortest correct candidate with a derivation and at least `floor` tokens, or None.

    Ties go to the first (Ling 2.6 report §3.1.2; floor and derivation are our choice).
    """
    fit = [i for i, c in enumerate(candidates) if c.correct and c.derivation_tokens > 0 and c.tokens >= floor]
    return min(fit, key=lambda i: candidates[i].tokens, default=None)


def takes_pruned(original: Candidate, pruned: Candidate | None) -> bool:
    """Whether a pruned form replaces the original: it is correct, has a derivation and is strictly shorter."""
    return bool(pruned and pruned.correct and pruned.derivation_tokens > 0 and pruned.tokens < original.tokens)
