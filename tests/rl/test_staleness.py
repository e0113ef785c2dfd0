"""Admission by capacity and discard by staleness."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rl.staleness import Limits, State, capacity, is_stale, step


def run(events, limits, state=None):
    state, records = State() if state is None else state, []
    for event in events:
        state, record = step(state, event, limits)
        records.append(record)
    return state, records


def test_the_oracles_admissions(golden):
    for case in json.loads((golden / "objectives/staleness.json").read_text())["admission"]:
        limits = Limits(case["max_concurrent"], case["max_staleness"], case["consumer_bs"])
        state = State()
        for event, expected in zip(case["events"], case["expected"], strict=True):
            state, record = step(state, event, limits)
            found = {name: record[name] for name in ("capacity", "admitted")}
            found |= {"running": list(state.running), "pending": list(state.pending)}
            assert found | {"accepted": state.accepted, "version": state.version} == expected


def test_the_oracles_discards(golden):
    for case in json.loads((golden / "objectives/staleness.json").read_text())["discard"]:
        oldest = {t["id"]: min(s["version"] for s in t["segments"]) for t in case["trajectories"]}
        stale = [i for i, version in oldest.items() if is_stale(version, case["version"], case["bound"])]
        assert stale == case["discarded"]
        # The machine finds the same ones on the way, whenever each has grown too old.
        limits = Limits(max_concurrent=9, max_staleness=case["bound"], consumer_batch_size=9)
        events = [{"op": "submit", "ids": sorted(oldest)}]
        for version in range(case["version"]):
            events += [{"op": "segment", "id": i} for i, first in oldest.items() if first == version]
            events.append({"op": "version"})
        state, records = run(events, limits)
        assert sorted(i for record in records for i in record["discarded"]) == case["discarded"]
        assert not set(state.running) & set(case["discarded"])


def drawn_events(data, limits):
    """A history that a correct loop could write, and every state on its way."""
    state, records, next_id, waiting = State(), [], 0, set()
    for _ in range(data.draw(st.integers(0, 40))):
        ops = [
            "submit",
            "version",
            *(["segment", "finish"] if state.running else []),
            *(["consume"] if waiting else []),
        ]
        event = {"op": data.draw(st.sampled_from(ops))}
        if event["op"] == "submit":
            event["ids"] = list(range(next_id, next_id := next_id + data.draw(st.integers(1, 4))))
        elif event["op"] in ("segment", "finish"):
            event["id"] = data.draw(st.sampled_from(state.running))
        if event["op"] == "finish":
            event["accepted"] = event["id"] in state.oldest and data.draw(st.booleans())
        elif event["op"] == "consume":
            event["ids"] = [data.draw(st.sampled_from(sorted(waiting)))]
        state, record = step(state, event, limits)
        waiting = set(state.oldest) - set(state.running)
        records.append(record)
        yield state, record, records


LIMITS = st.builds(Limits, st.integers(1, 5), st.integers(0, 3), st.integers(1, 3))


@given(st.data(), LIMITS)
def test_the_log_leads_to_the_state(data, limits):
    state, records = State(), []
    for state, _, records in drawn_events(data, limits):  # noqa: B007  the last ones count
        pass
    logged = json.loads(json.dumps(records))
    assert run([record["event"] for record in logged], limits) == (state, logged)


@given(st.data(), LIMITS)
def test_limits_hold_after_every_event(data, limits):
    for state, record, _ in drawn_events(data, limits):
        assert len(state.running) <= limits.max_concurrent
        assert all(not is_stale(oldest, state.version, limits.max_staleness) for oldest in state.oldest.values())
        assert not state.pending or capacity(state, limits) <= 0
        assert len(record["admitted"]) <= max(0, record["capacity"])


def test_a_discarded_rollout_gives_its_place_back():
    limits = Limits(max_concurrent=2, max_staleness=0, consumer_batch_size=1)
    submit, segment = {"op": "submit", "ids": [0, 1]}, {"op": "segment", "id": 0}
    state, _ = run([submit, segment, {"op": "finish", "id": 0, "accepted": True}], limits)
    assert (state.accepted, state.running) == (1, ())
    state, (record,) = run([{"op": "version"}], limits, state)
    assert record["discarded"] == [0]
    assert (state.accepted, state.running) == (0, (1,))


def test_a_rollout_that_was_trained_on_ages_no_more():
    limits = Limits(max_concurrent=2, max_staleness=0, consumer_batch_size=2)
    events = [{"op": "submit", "ids": [0]}, {"op": "segment", "id": 0}, {"op": "finish", "id": 0, "accepted": True}]
    state, records = run([*events, {"op": "consume", "ids": [0]}, {"op": "version"}], limits)
    assert (state.accepted, dict(state.oldest), records[-1]["discarded"]) == (1, {}, [])


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"op": "finsh"}, "op is 'finsh', did you mean 'finish'"),
        ({"op": "submit", "ids": [2, 2]}, "rollout 2 was submitted before"),
        ({"op": "submit", "ids": [0]}, "rollout 0 was submitted before"),
        (
            {"op": "finish", "id": 7, "accepted": True},
            r"rollout 7 is not running \(op 'finish'\); running are \(0, 1\)",
        ),
        ({"op": "consume", "ids": [0]}, "rollout 0 cannot be trained on"),
    ],
)
def test_an_impossible_event_is_named(event, message):
    limits = Limits(2, 1, 2)
    state, _ = run([{"op": "submit", "ids": [0, 1]}, {"op": "segment", "id": 0}], limits)
    with pytest.raises(ValueError, match=message):
        step(state, event, limits)


@pytest.mark.parametrize("limits", [(0, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_limits_out_of_range_are_named(limits):
    with pytest.raises(
        ValueError, match=r"(max_concurrent|max_staleness|consumer_batch_size) is .*; expected at least"
    ):
        Limits(*limits)
