"""What reinforcement learning learns from: the ledger with drawn lengths and no model, its speed, slow environments.

python -m benchmarks.rl --json_out=rl.json [--quick]
"""

import dataclasses
import random
import sys
import time
from collections.abc import Callable

from absl import app, flags

from benchmarks.async_rl import measure, replay_equal, staleness0_equal
from benchmarks.json_out import JSON_OUT
from benchmarks.report import Claim, Figure, check_json_out, finish
from benchmarks.slow_tools import slow_tools_step_over_slowest
from ling_jax.rl.ledger import BatchTaken, Drawn, Ended, Generated, Ledger, Limits, NewVersion
from ling_jax.rl.simulate import Outcome, exponential, outcome_of, simulate

QUICK = flags.DEFINE_bool("quick", False, "fewer versions, and a tenth of the events")

LONGEST = 10**6  # of drawn lengths: no limit
STALENESS, GROUPS, GROUP_SIZE = 4, 8, 8


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Exponential lengths with one mean before the `change`, and another behind it."""

    slots: int
    before: float
    after: float
    budget_mean: float  # the budget is a batch of answers of this mean

    def limits(self, wait_budgets: int | None = None) -> Limits:
        budget = round(GROUPS * GROUP_SIZE * self.budget_mean)
        limits = Limits(self.slots, GROUPS, GROUP_SIZE, budget, STALENESS, STALENESS)
        return limits if wait_budgets is None else dataclasses.replace(limits, wait_budgets=wait_budgets)

    def lengths(self, change: int) -> Callable[[int, int], int]:
        early, late = exponential(self.before, LONGEST, seed=1), exponential(self.after, LONGEST, seed=2)
        return lambda rollout, version: (early if version < change else late)(rollout, version)


SCENARIOS = {
    "shrinking": Scenario(64, 140, 60, 140),
    "small_batches_then_short": Scenario(64, 1000, 60, 140),  # the first batches have one group in the mean
    "shrinking_many_slots": Scenario(256, 140, 60, 140),
    "growing": Scenario(64, 60, 140, 60),
    "many_slots": Scenario(256, 102, 102, 102),
    "few_slots": Scenario(64, 102, 102, 102),
}


def main(argv) -> None:
    del argv
    check_json_out(JSON_OUT.value)
    change, versions = (20, 60) if QUICK.value else (40, 160)
    outcomes = {name: outcome_after(s, change, versions) for name, s in SCENARIOS.items()}
    claims = [
        fraction_claim("learnt_fraction.shrinking", outcomes, ("shrinking", "small_batches_then_short"), 0.95),
        fraction_claim("learnt_fraction.many_slots", outcomes, ("many_slots",), 0.8),
        quartile_claim(outcomes),
        outstanding_claim(outcomes),
        events_claim(10**5 if QUICK.value else 10**6),
        slow_tools_claim(),
        *async_claims(),
    ]
    figures = [reports_figure(name, change, versions) for name in ("shrinking", "many_slots")]
    command = "python -m benchmarks.rl" + (" --quick" if QUICK.value else "")
    sys.exit(finish(claims, command, JSON_OUT.value, figures=figures))


def outcome_after(scenario: Scenario, change: int, versions: int, wait_budgets: int | None = None) -> Outcome:
    limits = scenario.limits(wait_budgets)
    steps = simulate(limits, scenario.lengths(change), versions)
    behind = outcome_of(steps[change:], limits)
    return behind._replace(outstanding_over_bound=outcome_of(steps, limits).outstanding_over_bound)


def fraction_claim(name: str, outcomes: dict[str, Outcome], scenarios: tuple[str, ...], bar: float) -> Claim:
    worst = min(scenarios, key=lambda scenario: outcomes[scenario].learnt_fraction)
    workload = "; ".join(f"{scenario}: {words(SCENARIOS[scenario], outcomes[scenario])}" for scenario in scenarios)
    return Claim(name, outcomes[worst].learnt_fraction, "of tokens", ">=", bar, workload)


def words(scenario: Scenario, outcome: Outcome) -> str:
    shares = ", ".join(f"{share:.2f}" for share in outcome.quartile_shares)
    return (
        f"{scenario.slots} slots, means {scenario.before:g} to {scenario.after:g}, staleness {STALENESS}; drawn "
        f"{outcome.mean_drawn:.0f}, used {outcome.mean_used:.0f}, used of each length quartile {shares}, "
        f"{outcome.tokens_per_step:.0f} tokens a version of {scenario.limits().token_budget}"
    )


def quartile_claim(outcomes: dict[str, Outcome]) -> Claim:
    """A quartile's share, over the mean share."""
    relative = {
        name: 4 * min(outcome.quartile_shares) / sum(outcome.quartile_shares) for name, outcome in outcomes.items()
    }
    workload = ", ".join(f"{name} {value:.3f}" for name, value in relative.items())
    return Claim("quartile_share_min", min(relative.values()), "of its share", ">=", 0.8, workload)


def outstanding_claim(outcomes: dict[str, Outcome]) -> Claim:
    most = max(outcome.outstanding_over_bound for outcome in outcomes.values())
    workload = f"the most of all scenarios over (S + 1) batches, {SCENARIOS['shrinking'].limits().max_outstanding}"
    return Claim("outstanding_over_bound", most, "x", "<=", 1, workload)


def events_claim(events: int, rollouts: int = 65_536) -> Claim:
    """Every event is followed by the two questions that a loop asks."""
    limits = Limits(rollouts, rollouts // 32, 8, 8 * rollouts, STALENESS, STALENESS)
    ledger, rng, left, told, begun = Ledger(limits), random.Random(0), {}, 0, time.perf_counter()
    while told < events:
        while count := ledger.wanted:
            ledger.apply(Drawn(tuple(range(ledger.prompts, ledger.prompts + count))))
            told += 1
        for i in list(ledger.running):
            pieces = left.setdefault(i, rng.randrange(1, 12))
            ledger.apply(Generated(i, 8))
            left[i], told = pieces - 1, told + 1
            if pieces == 1:
                ledger.apply(Ended(i, rewarded=True))
                told += 1
            assert ledger.is_open in (True, False) and ledger.wanted >= 0
        if not ledger.is_open:
            ledger.apply(BatchTaken())
            ledger.apply(NewVersion())
            told += 2
    seconds = (time.perf_counter() - begun) * 10**6 / told
    workload = f"{told} events of {rollouts} rollouts that run at once, {ledger.version} versions"
    return Claim("million_events_seconds", seconds, "s", "<=", 60, workload)


def slow_tools_claim() -> Claim:
    workload = "16 rollouts whose environment takes 1 s, all at once; a step of a tiny model"
    return Claim("slow_tools_step_over_slowest", slow_tools_step_over_slowest(), "x", "<=", 1.1, workload)


def async_claims() -> list[Claim]:
    """Generation beside the optimisation steps: what it gains, and that it changes nothing that can be computed."""
    found = measure(5 if QUICK.value else 10)
    steps = 4 if QUICK.value else 20
    three = "three engines, tools in threads"
    return [
        Claim("async_over_sync_samples", found.asynchronous / found.sync, "x", ">=", 2, str(found)),
        Claim("live_rows", found.live, "of slots", ">=", 0.85, "in use while a rollout waits for one"),
        Claim("replay_equal", replay_equal(steps), "", ">=", 1, f"{steps} steps, staleness {STALENESS}, {three}"),
        Claim("staleness0_equal", staleness0_equal(steps), "", ">=", 1, f"weights after {steps} steps, {three}"),
    ]


def reports_figure(name: str, change: int, versions: int) -> Figure:
    outcome = outcome_after(SCENARIOS[name], change, versions, wait_budgets=0)
    workload = f"the reports' rule: no version waits for what it throws away. {words(SCENARIOS[name], outcome)}"
    return Figure(f"learnt_fraction_without_waiting.{name}", outcome.learnt_fraction, "of tokens", workload)


if __name__ == "__main__":
    app.run(main)
