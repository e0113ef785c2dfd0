"""Rubrics that rules judge: functions of a prompt's answers, [G] merits and [G] defects in [0, 1]."""

from collections.abc import Sequence

import numpy as np

from ling_jax.align.judges.cases import Answer

Scores = tuple[np.ndarray, np.ndarray]


def correct(answers: Sequence[Answer]) -> Scores:
    """The environment's outcome."""
    outcomes = np.array([answer.outcome for answer in answers])
    return outcomes, 1 - outcomes


def shows_steps(answers: Sequence[Answer]) -> Scores:
    """More than one sentence."""
    return _yes_or_no([len(answer.sentences) > 1 for answer in answers])


def no_repeats(answers: Sequence[Answer]) -> Scores:
    """A defect is the share of tokens in sentences that repeat earlier ones."""
    share = np.array([answer.repeated / max(len(answer.tokens), 1) for answer in answers])
    return (share == 0).astype(np.float64), share


def ends_cleanly(answers: Sequence[Answer]) -> Scores:
    """The policy ended its answer, and no limit did."""
    return _yes_or_no([answer.finished for answer in answers])


def brief(answers: Sequence[Answer]) -> Scores:
    """Few tokens among the answers to this prompt; a merit of right answers alone."""
    lengths = np.array([len(answer.tokens) for answer in answers], np.float64)
    longer = (lengths - lengths.min()) / (np.ptp(lengths) + 1e-9)
    return correct(answers)[0] * (1 - longer), longer


def _yes_or_no(found: Sequence[bool]) -> Scores:
    merits = np.array(found, np.float64)
    return merits, 1 - merits


RULES = {
    "correct": correct, "shows_steps": shows_steps, "no_repeats": no_repeats, "ends_cleanly": ends_cleanly,
    "brief": brief,
}  # fmt: skip
