"""The ledger of rollouts, driven by rollouts of drawn lengths."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.rl.ledger import (
    BatchTaken,
    Drawn,
    Ended,
    Generated,
    Ledger,
    Limits,
    NewVersion,
    event_from_json,
    event_json,
)
from ling_jax.rl.simulate import exponential, outcome_of, simulate

MANY = 10**6


@st.composite
def drawn_limits(draw):
    staleness = draw(st.integers(0, 4))
    return Limits(
        slots=draw(st.integers(1, 8)),
        prompts_per_step=draw(st.integers(1, 3)),
        group_size=draw(st.integers(1, 3)),
        token_budget=draw(st.integers(0, 60)),
        max_staleness=staleness,
        max_retention=draw(st.integers(0, 4)) if staleness else 0,
        count=draw(st.sampled_from(["completed", "generated"])),
        refill=draw(st.sampled_from(["iteration", "continuous"])),
        wait_budgets=draw(st.sampled_from([0, 1, 4])),
    )


class Run:
    """A loop around a ledger, whose rollouts have drawn lengths; some end without a reward. Every decision is noted."""

    def __init__(self, limits: Limits, seed: int, *, failing: float = 0.0, piece: int = 3):
        self.ledger, self.seed, self.failing, self.piece = Ledger(limits), seed, failing, piece
        self.left: dict[int, int] = {}
        self.log: list = []

    def tell(self, event):
        event = event_from_json(json.loads(json.dumps(event_json(event))))
        decisions = self.ledger.apply(event)
        self.log.append([event_json(event), *decisions])
        return decisions

    def draw(self):
        while count := self.ledger.wanted:
            first = self.ledger.prompts
            self.tell(Drawn(tuple(range(first, first + count))))

    def advance(self):
        """A piece of decoding."""
        for i in sorted(self.ledger.running):
            rng = random.Random(f"{self.seed}/{i}")
            length, fails = rng.choice([1, 2, 5, 9, 20, 60]), rng.random() < self.failing
            left = self.left.get(i, length)
            tokens = min(self.piece, left)
            self.left[i] = left - tokens
            self.tell(Generated(i, tokens))
            if tokens == left:
                self.tell(Ended(i, rewarded=not fails))
        self.draw()

    def version(self):
        self.draw()
        while self.ledger.is_open:
            self.advance()
        taken = self.tell(BatchTaken())
        return taken, self.tell(NewVersion()).discarded


@given(drawn_limits(), st.integers(0, MANY), st.sampled_from([0.0, 0.3]))
@settings(max_examples=150, deadline=None)
def test_bounds_hold_at_every_event(limits, seed, failing):
    """Worked out from the events alone: outstanding, running, ages of what is used, reasons of what is thrown away."""
    run = Run(limits, seed, failing=failing)
    for _ in range(8):
        run.version()
    version, first, started, rewarded, open_prompts, running = 0, {}, {}, {}, set(), set()
    size = limits.group_size
    for record, newly_started, taken, broken, discarded in run.log:
        match record["op"]:
            case "drawn":
                open_prompts |= set(record["prompts"])
            case "generated" if record["tokens"]:
                assert record["rollout"] in running
                first.setdefault(record["rollout"], version)
            case "ended":
                running.remove(record["rollout"])
                rewarded[record["rollout"]] = record["rewarded"]
            case "batch_taken":
                assert len(taken) <= limits.prompts_per_step
                for prompt in (*taken, *broken):
                    members = range(prompt * size, (prompt + 1) * size)
                    used = [i for i in members if rewarded.get(i) and first[i] >= 0]
                    assert bool(used) == (prompt in taken)
                    assert all(version - first[i] <= limits.max_staleness for i in used)
                    assert not running & set(members)
                    open_prompts.remove(prompt)
            case "new_version":
                version += 1
                for i in discarded:
                    paused = i in running and version - started[i] > limits.max_retention
                    assert paused or version - first[i] > limits.max_staleness
                    running.discard(i)
                    first[i] = -1  # never used
        running |= set(newly_started)
        started |= dict.fromkeys(newly_started, version)
        open_prompts -= {p for p in open_prompts if all(first.get(i) == -1 for i in range(p * size, p * size + size))}
        assert len(running) <= limits.slots
        assert len(open_prompts) * size <= limits.max_outstanding
    assert run.ledger.outstanding == len(open_prompts) * size and set(run.ledger.running) == running


@given(drawn_limits(), st.integers(0, MANY))
@settings(max_examples=60, deadline=None)
def test_where_the_wait_has_no_limit_nothing_is_thrown_away(limits, seed):
    limits = Limits(**(vars(limits) | {"wait_budgets": 10**9, "token_budget": max(1, limits.token_budget)}))
    run = Run(limits, seed)
    for _ in range(12):
        taken, discarded = run.version()
        assert not discarded and 1 <= len(taken.taken) <= limits.prompts_per_step


@pytest.mark.parametrize("beside", [1, 4, 40])
def test_what_is_generated_beside_slow_steps_is_not_thrown_away(beside):
    """However many pieces of decoding a step takes, no more begins than the versions to come can use."""
    run = Run(Limits(24, 4, 3, 10**6, max_staleness=2, max_retention=2), seed=0)
    for _ in range(20):
        run.draw()
        while run.ledger.is_open:
            run.advance()
        assert len(run.tell(BatchTaken()).taken) == 4
        for _ in range(beside):
            run.advance()
        assert not run.tell(NewVersion()).discarded


@given(drawn_limits(), st.integers(0, MANY), st.data())
@settings(max_examples=60, deadline=None)
def test_a_ledger_that_was_stored_at_any_moment_decides_the_same(limits, seed, data):
    whole, stopped = Run(limits, seed, failing=0.2), Run(limits, seed, failing=0.2)
    tell = stopped.tell

    def tell_a_restored_one(event):
        if data.draw(st.integers(0, 3)) == 0:
            stopped.ledger = Ledger.from_json(json.loads(json.dumps(stopped.ledger.to_json())), limits)
        return tell(event)

    stopped.tell = tell_a_restored_one
    for _ in range(4):
        whole.version()
        stopped.version()
    assert whole.log == stopped.log


def test_the_oracles_iterations(golden):
    """C3PO++ as its report prints it: nothing is waited for, and a batch is what has ended."""
    for case in json.loads((golden / "objectives/c3po.json").read_text()):
        limits = Limits(
            slots=case["omega"],
            prompts_per_step=MANY,
            group_size=1,
            token_budget=case["phi"],
            max_staleness=MANY,
            max_retention=case["sigma"],
            count=case["count"],
            refill=case["refill"],
            wait_budgets=0,
        )
        ledger, left = Ledger(limits), list(case["lengths"])
        added = ledger.apply(Drawn(tuple(range(len(left))))).started
        purged: tuple[int, ...] = ()
        runs: dict[int, list[list[int]]] = {}
        for expected in case["expected"]:
            resumed = sorted(set(ledger.running) - set(added))
            record = {"version": ledger.version, "purged": list(purged), "resumed": resumed, "completed": []}
            added = list(added)
            while is_open(ledger):
                before = sorted(ledger.running)
                for i in before:
                    left[i] -= 1
                    added += ledger.apply(Generated(i, 1)).started
                    runs.setdefault(i, [])
                    if runs[i] and runs[i][-1][0] == ledger.version:
                        runs[i][-1][1] += 1
                    else:
                        runs[i].append([ledger.version, 1])
                for i in before:
                    if not left[i]:
                        record["completed"].append(i)
                        added += ledger.apply(Ended(i, rewarded=True)).started
            paused = sorted(ledger.running)
            record["paused"] = [
                [i, ledger.accounts[i].tokens, ledger.version - ledger.accounts[i].started] for i in paused
            ]
            record |= {
                "added": sorted(added),
                "completed_segments": {str(i): runs[i] for i in record["completed"]},
                "completed_tokens": ledger.completed,
                "generated_tokens": ledger.generated,
            }
            assert record == expected | {"added": sorted(expected["added"])}, (limits, expected["version"])
            ledger.apply(BatchTaken())
            _, _, _, purged = decisions = ledger.apply(NewVersion())
            added = decisions.started


def is_open(ledger: Ledger) -> bool:
    """The algorithm's own rule, which asks for no complete group."""
    used = ledger.generated if ledger.limits.count == "generated" else ledger.completed
    return bool(ledger.running) and used < ledger.limits.token_budget


def test_the_oracles_discards(golden):
    for case in json.loads((golden / "objectives/staleness.json").read_text())["discard"]:
        oldest = {t["id"]: min(s["version"] for s in t["segments"]) for t in case["trajectories"]}
        ledger = Ledger(Limits(99, 99, 1, 0, case["bound"], case["bound"], wait_budgets=0))
        numbers, discarded = {}, []
        for version in range(case["version"]):
            for i in (i for i, first in oldest.items() if first == version):
                numbers[ledger.prompts] = i
                (new,) = ledger.apply(Drawn((ledger.prompts,))).started
                ledger.apply(Generated(new, 1))
                ledger.apply(Ended(new, rewarded=True))
            discarded += [numbers[i] for i in ledger.apply(NewVersion()).discarded]
        assert sorted(discarded) == case["discarded"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Drawn((4,)), "prompt 4 was drawn; expected 1"),
        (Generated(9, 1), "rollout 9 generated; it is unknown, expected a running one"),
        (Generated(0, -1), "rollout 0 generated -1 tokens"),
        (Ended(1, True), "rollout 1 ended; it is waiting"),
    ],
)
def test_events_that_cannot_be_are_refused_and_change_nothing(event, message):
    ledger = Ledger(Limits(1, 1, 2, 0, 0, 0))
    ledger.apply(Drawn((0,)))
    before = ledger.to_json()
    with pytest.raises(ValueError, match=message):
        ledger.apply(event)
    assert ledger.to_json() == before


def test_an_unknown_event_of_a_log_is_refused():
    with pytest.raises(ValueError, match=r"op is 'endet'.*ended"):
        event_from_json({"op": "endet"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(slots=0), "slots is 0; expected at least 1"),
        (dict(count="all"), "count is 'all'"),
        (dict(max_staleness=0, max_retention=2), "max_staleness is 0 and max_retention 2"),
    ],
)
def test_limits_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Limits(
            **(
                dict(slots=1, prompts_per_step=1, group_size=2, token_budget=9, max_staleness=1, max_retention=1)
                | fields
            )
        )


def test_groups_that_fail_whole_leave_without_a_batch():
    run = Run(Limits(4, 2, 2, 9, 1, 1), seed=0, failing=1.0)
    for _ in range(5):
        decisions, _ = run.version()
        assert not decisions.taken and decisions.broken


SCENARIOS = {
    "answers of 102 tokens, few slots": (64, 102, 102),
    "many slots": (256, 102, 102),
    "answers get short": (64, 140, 60),
    "answers get short, many slots": (256, 140, 60),
    "answers get long": (64, 60, 140),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_long_answers_are_learnt_from_like_short_ones(name):
    """Exponential lengths, a budget of a batch of the first mean; with the reports' rule, half of the tokens are lost
    in the second case."""
    slots, before, after = SCENARIOS[name]
    limits = Limits(slots, 8, 8, 64 * before, 4, 4)
    early, late = exponential(before, MANY, seed=1), exponential(after, MANY, seed=2)
    steps = simulate(limits, lambda i, version: (early if version < 30 else late)(i, version), 90)[30:]
    outcome = outcome_of(steps, limits)
    assert outcome.learnt_fraction >= 0.95 and min(outcome.quartile_shares) >= 0.95
    assert outcome.outstanding_over_bound <= 1
    used = sum(sum(step.lengths) for step in steps) / sum(step.generated for step in steps)
    assert used >= 0.95
    reports = Limits(**(vars(limits) | {"wait_budgets": 0}))
    assert name != "many slots" or outcome_of(simulate(reports, late, 60), reports).learnt_fraction < 0.6


def test_prompts_past_the_bound_are_refused():
    ledger = Ledger(Limits(slots=4, prompts_per_step=2, group_size=2, token_budget=9, max_staleness=1, max_retention=1))
    ledger.apply(Drawn((0, 1, 2)))
    with pytest.raises(ValueError, match="2 prompts pass the bound of 8 rollouts; 6 are out"):
        ledger.apply(Drawn((3, 4)))
    ledger.apply(Drawn((3,)))


def test_a_version_does_not_end_with_nothing_but_what_broke():
    ledger = Ledger(Limits(slots=2, prompts_per_step=2, group_size=1, token_budget=4, max_staleness=1, max_retention=1))
    ledger.apply(Drawn((0, 1)))
    ledger.apply(Generated(0, 5))
    ledger.apply(Ended(0, rewarded=False))
    assert ledger.is_open and not ledger.batch
    ledger.apply(Generated(1, 1))
    ledger.apply(Ended(1, rewarded=True))
    assert not ledger.is_open and ledger.apply(BatchTaken(unscored=(1,))).taken == (1,)
    assert [left.trained for left in ledger.take_left()] == [False, False]
