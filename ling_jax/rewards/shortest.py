"""Shortest correct response: which of a query's answers, and which of their pruned forms, to distil."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FLOOR_PERCENTILE = 5.0  # our choice


class Candidate(NamedTuple):
    correct: bool
    tokens: int  # by the tokenizer of the model that will learn from it
    derivation_tokens: int  # those before the final answer


def length_floor(lengths: ArrayLike, *, percentile: float = FLOOR_PERCENTILE) -> float:
    """The percentile of a domain's lengths, linearly interpolated: what is shorter is likely only an answer."""
    if not np.size(lengths):
        raise ValueError("lengths is empty; expected the lengths of the domain's answers")
    return float(np.percentile(lengths, percentile))


def pick_shortest(candidates: Sequence[Candidate], floor: float = 0) -> int | None:
    """Index of the shortest correct candidate that derives its answer and has `floor` tokens or more, or None.

    Of equally short ones the first (Ling 2.6 report §3.1.2; floor and derivation are our choice).
    """
    fit = [i for i, c in enumerate(candidates) if c.correct and c.derivation_tokens > 0 and c.tokens >= floor]
    return min(fit, key=lambda i: candidates[i].tokens, default=None)


def takes_pruned(original: Candidate, pruned: Candidate | None) -> bool:
    """Whether a judge's pruned form replaces the original: still correct, with a derivation, and strictly shorter."""
    return bool(pruned and pruned.correct and pruned.derivation_tokens > 0 and pruned.tokens < original.tokens)
