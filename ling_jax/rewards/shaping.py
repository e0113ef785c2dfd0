"""Shaping: what a reward pays besides the outcome, so that no answer gains by it what only a right one earns."""

import numpy as np
from numpy.typing import ArrayLike

from ling_jax.rewards.bounds import check_reward, check_same_length

MAX_LOSS = 0.9  # our choice: the share of a right answer's lead over all others that shaping takes at most


def shape(outcomes: ArrayLike, terms: ArrayLike) -> np.ndarray:
    """The rewards of one group of answers: their outcomes, and the shaping terms where some answer is right.

        outcome                             where no answer of the group is right
        outcome + max(term, -0.9 (1 - b))   of a right answer, outcome 1, elsewhere
        outcome + min(term, 0)              of another answer, elsewhere (compare Ling 2.6 report §3.1.2, eq. 4)

    b is the best outcome among the other answers: 0 unless the environment gives parts of an outcome.

    `outcomes` [G] in [0, 1] and `terms` [G], finite; the sum of length, format, redundancy, process or rubric terms.
    Returns [G] float64. Advantages are relative to the group. Among wrong answers alone the terms would be all that
    differs, and once normalised the smallest term is a full signal: the policy would learn to fail fast. Such a group
    has equal rewards and advantages of 0; only an environment that gives parts of an outcome makes them differ. Where
    all are right the terms decide, as they should: the shorter right answer is the better one. Where some are, every
    right answer is above every wrong one. Raises ValueError on values out of range.
    """
    check_same_length(outcomes=outcomes, terms=terms)
    outcomes = check_reward(outcomes, 0, 1, "outcomes")
    terms = check_reward(terms, -np.inf, np.inf, "terms")
    right = outcomes == 1
    if not right.any():
        return outcomes
    lead = 1 - outcomes[~right].max(initial=0)
    return np.where(right, outcomes + np.maximum(terms, -MAX_LOSS * lead), outcomes + np.minimum(terms, 0))
