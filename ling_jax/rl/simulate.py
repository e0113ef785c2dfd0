"""The ledger with rollouts whose lengths are drawn and not generated: what a run would learn from, in a second."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ling_jax.rl.accounts import quartile_shares
from ling_jax.rl.ledger import BatchTaken, Drawn, Ended, Generated, Ledger, Limits, NewVersion

LEAST_LEARNT, WARNED_LEARNT = 0.8, 0.95  # our choice: a run that learns from a smaller share is refused, or warned of
TRIAL_STEPS, TRIAL_SKIPPED = 40, 10  # the first ones fill the slots


class SimulatedStep(NamedTuple):
    """One version."""

    lengths: tuple[int, ...]  # whole lengths of the rollouts that were trained on
    lost: tuple[int, ...]  # whole lengths of those that were thrown away
    lost_tokens: int  # that they had by then
    generated: int
    outstanding: int  # the most at any moment


def simulate(limits: Limits, length: Callable[[int, int], int], steps: int, *, piece: int = 8) -> list[SimulatedStep]:
    """`steps` versions in which each running rollout gets `piece` tokens at a time. `length(rollout, version)` is the
    tokens of one that is drawn under a version, at least 1."""
    ledger, left, found = Ledger(limits), {}, []
    whole: dict[int, int] = {}

    def draw() -> None:
        while count := ledger.wanted:
            first = ledger.prompts * limits.group_size
            for i in range(first, first + count * limits.group_size):
                whole[i] = left[i] = length(i, ledger.version)
            ledger.apply(Drawn(tuple(range(ledger.prompts, ledger.prompts + count))))

    for _ in range(steps):
        draw()
        generated, most = 0, ledger.outstanding
        while ledger.is_open:
            for i in sorted(ledger.running):
                tokens = min(piece, left[i])
                left[i] -= tokens
                generated += tokens
                ledger.apply(Generated(i, tokens))
                if not left[i]:
                    ledger.apply(Ended(i, rewarded=True))
            draw()
            most = max(most, ledger.outstanding)
        before = set(ledger.accounts)
        ledger.apply(BatchTaken())
        used = sorted(before - set(ledger.accounts))
        discarded = ledger.apply(NewVersion()).discarded
        lost_tokens = sum(entry.tokens for entry in ledger.take_left() if not entry.trained)
        found.append(
            SimulatedStep(
                tuple(whole.pop(i) for i in used),
                tuple(whole.pop(i) for i in discarded),
                lost_tokens,
                generated,
                most,
            )
        )
    return found


class Outcome(NamedTuple):
    """Of some simulated steps."""

    learnt_fraction: float  # of the generated tokens: those that were trained on
    quartile_shares: tuple[float, ...]  # of the rollouts of each length quartile that left: those trained on
    mean_drawn: float
    mean_used: float
    outstanding_over_bound: float
    tokens_per_step: float


def outcome_of(steps: list[SimulatedStep], limits: Limits) -> Outcome:
    used, lost = (np.array([n for step in steps for n in getattr(step, name)]) for name in ("lengths", "lost"))
    generated = sum(step.generated for step in steps)
    everything = np.concatenate([used, lost])
    return Outcome(
        learnt_fraction=float(used.sum() / max(used.sum() + sum(step.lost_tokens for step in steps), 1)),
        quartile_shares=quartile_shares(everything, np.arange(len(everything)) < len(used)),
        mean_drawn=float(everything.mean()) if len(everything) else 0.0,
        mean_used=float(used.mean()) if len(used) else 0.0,
        outstanding_over_bound=max(step.outstanding for step in steps) / limits.max_outstanding,
        tokens_per_step=generated / len(steps),
    )


def exponential(mean: float, most: int, seed: int = 0) -> Callable[[int, int], int]:
    """Lengths from 1 to `most`, exponential with this mean before they are cut."""
    rng = np.random.default_rng(seed)
    return lambda rollout, version: int(min(most, max(1, round(rng.exponential(mean)))))


def check_sizes(limits: Limits, longest: int) -> str:
    """A warning with sizes that would do, or "" where a run would learn from nearly all that it generates.

    The ledger is tried with exponential lengths, at most `longest`, whose mean is the budget over a batch. Raises
    ValueError where less than 0.8 of the tokens would be learnt from.
    """
    learnt = tried(limits, longest)
    if learnt >= WARNED_LEARNT:
        return ""
    found = (
        f"of the tokens that rollouts of exponential lengths with a mean of {_mean(limits):.0f}, the budget over a "
        f"batch, generate, {learnt:.0%} would be learnt from, the longest least"
    )
    advice = _advice(limits, longest)
    if learnt < LEAST_LEARNT:
        raise ValueError(f"{found}; {advice}")
    return f"{found}; {advice}"


def tried(limits: Limits, longest: int) -> float:
    """The share of tokens that are learnt from, of exponential lengths whose mean is the budget over a batch."""
    if not limits.token_budget:
        return 1.0
    mean = _mean(limits)
    steps = simulate(limits, exponential(mean, longest), TRIAL_STEPS, piece=max(8, round(mean / 8)))
    return outcome_of(steps[TRIAL_SKIPPED:], limits).learnt_fraction


def _mean(limits: Limits) -> float:
    return limits.token_budget / (limits.prompts_per_step * limits.group_size)


def _advice(limits: Limits, longest: int) -> str:
    """The first change of one size that would do."""
    retention = dataclasses.replace(
        limits, max_retention=max(limits.max_staleness, 1), max_staleness=max(limits.max_staleness, 1)
    )
    changes = [
        (f"rollout.max_retention={retention.max_retention} (max_staleness {retention.max_staleness})", retention)
    ]
    for factor in (2, 4, 8):
        if limits.slots >= factor:
            changes.append(
                (f"rollout.slots={limits.slots // factor}", dataclasses.replace(limits, slots=limits.slots // factor))
            )
    for factor in (2, 4):
        wider = dataclasses.replace(
            limits, prompts_per_step=factor * limits.prompts_per_step, token_budget=factor * limits.token_budget
        )
        changes.append(
            (f"rollout.prompts_per_step={wider.prompts_per_step} with rollout.token_budget={wider.token_budget}", wider)
        )
    for told, changed in changes:
        if tried(changed, longest) >= WARNED_LEARNT:
            return f"{told} would do"
    return "raise rollout.token_budget, or lower rollout.slots"
