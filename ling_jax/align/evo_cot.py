"""Evo-CoT: right, without reasoning markers, short for the prompt, without repetition (Ling 2.6 report §3.1.2)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ling_jax.align.judges import Answer, Judge, case_of
from ling_jax.rewards import evo_cot_rewards, shape
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Rewards, where_judged


def evo_cot(
    groups: Sequence[Sequence[Episode]], reader: Reader, memory: Any, *, judge: Judge
) -> tuple[list[Rewards], Any]:
    """The terms of `rewards.evo_cot_rewards`, shaped; the judge says which sentences are redundant."""
    cases = [case_of(group, reader) for group in groups]
    found = zip(cases, judge.redundant_tokens(cases), strict=True)
    return [_pay_judged(case.answers, flagged, errors) for case, (flagged, errors) in found], memory


def evo_cot_shaped(answers: Sequence[Answer], flagged: Sequence[int]) -> Rewards:
    """Of one group; `flagged` [G] counts tokens in redundant sentences."""
    rewards = evo_cot_rewards(
        texts=[answer.text for answer in answers],
        lengths=[len(answer.tokens) for answer in answers],
        correct=[answer.outcome for answer in answers],
        flagged=flagged,
    )
    terms = {"format": rewards.format, "redundancy": rewards.redundancy}
    terms["length"] = rewards.length_weight * rewards.length
    return Rewards(
        shape(rewards.accuracy, np.sum(list(terms.values()), axis=0)), {"accuracy": rewards.accuracy} | terms
    )


def _pay_judged(answers: Sequence[Answer], flagged: Sequence[int], errors: Sequence[str]) -> Rewards:
    return where_judged(errors, lambda rows: evo_cot_shaped([answers[i] for i in rows], [flagged[i] for i in rows]))
