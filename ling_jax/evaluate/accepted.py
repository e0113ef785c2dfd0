"""Tokens per step of speculative decoding with MTP drafts, from a greedy text and its drafts."""

import numpy as np


def accepted_length(tokens_T: np.ndarray, drafts_TN: np.ndarray, *, start: int) -> float:
    """Mean number of tokens per step of the trunk, between 1 and N + 1.

    `tokens_T` [T] is a text whose tokens from `start` on the model chose greedily, so they verify drafts. `drafts_TN`
    [T, N] holds the MTP choices at each position for tokens t + 2, t + 3, …. The step at position t yields token t + 1
    and the drafts after it up to the first wrong one; the next step starts where it ended. The depths read the tokens
    of the text, which equal the drafts as long as these are accepted.

    Raises ValueError if the text is too short for one step.
    """
    depths = drafts_TN.shape[1]
    steps, at = 0, start - 1
    while at + depths + 1 < len(tokens_T):
        wrong = drafts_TN[at] != tokens_T[at + 2 : at + 2 + depths]
        at += 1 + (int(np.argmax(wrong)) if wrong.any() else depths)
        steps += 1
    if not steps:
        raise ValueError(f"a text of {len(tokens_T)} tokens from {start} on has no room for {depths} drafts")
    return (at - (start - 1)) / steps
