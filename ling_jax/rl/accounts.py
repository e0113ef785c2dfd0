"""What the ledger's numbers say of a run: which share of its tokens is learnt from, and whether long answers are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ling_jax.rl.collector import Use
from ling_jax.rl.ledger import Ledger, Left


def quartile_shares(lengths: np.ndarray, trained: np.ndarray) -> tuple[float, ...]:
    """Of each quartile by length, shortest first, the share that was trained on; empty without lengths."""
    if not len(lengths):
        return ()
    parts = np.array_split(np.argsort(lengths, kind="stable"), 4)
    return tuple(float(trained[part].mean()) if len(part) else 1.0 for part in parts)


def ledger_metrics(ledger: Ledger, recent: Sequence[Left]) -> dict[str, Any]:
    """Metrics of a step, from the rollouts that left lately.

    `tokens_learnt` is the share of their tokens that was trained on; `length/ended` the mean length of them all, and
    `length/learnt` of those that were trained on: far below it, long answers are lost; `learnt/quartile_1` to `_4` are
    the shares of rollouts by length. A rollout that was thrown away counts with the tokens that it had by then.
    """
    tokens = np.array([left.tokens for left in recent], np.float64)
    trained = np.array([left.trained for left in recent], bool)
    shares = {f"learnt/quartile_{i}": share for i, share in enumerate(quartile_shares(tokens, trained), start=1)}
    return shares | {
        "tokens_learnt": float(tokens[trained].sum() / max(tokens.sum(), 1)),
        "length/ended": float(tokens.mean()) if len(tokens) else 0.0,
        "length/learnt": float(tokens[trained].mean()) if trained.any() else 0.0,
        "outstanding": ledger.outstanding,
        "outstanding_bound": ledger.limits.max_outstanding,
    }


def use_metrics(use: Use) -> dict[str, float]:
    """What the engine did in a step: `engine/generate_seconds`, `engine/wait_seconds` in which all episodes waited for
    their environments, `engine/load_seconds` of new weights, and `engine/live`, the share of the slots that were taken
    while an episode waited for one (1 where none did)."""
    return {
        "engine/generate_seconds": use.generating,
        "engine/wait_seconds": use.waiting,
        "engine/load_seconds": use.loading,
        "engine/live": use.live / use.wanted if use.wanted else 1.0,
    }
