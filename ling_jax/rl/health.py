"""When a run had better stop: its engine and its trainer disagree, or all its answers are the same."""

from collections.abc import Mapping
from typing import Any

from ling_jax.rl.config import LoopConfig


class Unhealthy(RuntimeError):
    """A metric of a step passed the bound of a rule; the run is saved behind that step."""


def check_health(line: Mapping[str, Any], train: LoopConfig) -> None:
    """Raises Unhealthy where the metrics of a step pass `train.max_mismatch` or `train.min_entropy`."""
    mismatch, entropy = line["mismatch_same_version/mean"], line["entropy"]
    if line["mismatch_same_version/tokens"] and mismatch > train.max_mismatch:
        raise Unhealthy(
            f"step {line['step'] + 1}: recorded log-probs are {mismatch:.3g} nats in the mean off those that the same "
            f"weights have in training, and train.max_mismatch is {train.max_mismatch:g}: the engine computes "
            "something else, such as in another dtype or by other weights; find out what, or raise the bound"
        )
    if line["loss_tokens"] and entropy < train.min_entropy:
        raise Unhealthy(
            f"step {line['step'] + 1}: the entropy is {entropy:.3g} nats, below train.min_entropy "
            f"{train.min_entropy:g}: answers differ too little to learn from; lower the learning rate, or the bound"
        )
