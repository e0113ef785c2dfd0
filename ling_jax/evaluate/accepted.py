"""How many tokens a step of speculative decoding with MTP drafts gives, from a greedy text and its drafts."""

import numpy as np


def accepted_length(tokens_T: np.ndarray, drafts_TN: np.ndarray, *, start: int) -> float:
    """Tokens for each step of the trunk, between 1 and N + 1.

    `tokens_T` [T] is a text whose tokens from `start` on the model chose greedily, so that they verify drafts;
    `drafts_TN` [T, N] are the MTP depths' choices at each position: of tokens t + 2, t + 3, …. The step at position t
    gives token t + 1 and the drafts behind it up to the first that is wrong; the next one stands where it ended.
    Depths read the text's own tokens, which are the accepted drafts as far as any is accepted.

    Raises ValueError where no step fits.
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
