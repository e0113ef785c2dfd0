"""What a rollout leaves behind."""

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rl.trajectory import Trajectory, VersionRun

# (tokens, steps of the weights before them, whether a policy drew them)
PARTS = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 2), st.booleans()), max_size=12)
ARRAYS = ("completion_ids", "behaviour_logps", "versions", "loss_mask")


def build(parts, trajectory=None):
    trajectory, version = trajectory or Trajectory("task", (1, 2)), 0
    for count, later, drawn in parts:
        version += later
        if drawn:
            trajectory.append_generation(range(count), np.full(count, -0.5), version)
        else:
            trajectory.append_observation(range(count), version)
    return trajectory


def arrays(trajectory):
    return {name: getattr(trajectory, name).tolist() for name in ARRAYS}


def test_tool_output_carries_no_loss():
    trajectory = Trajectory("task", (1, 2))
    trajectory.append_generation([5, 6], [-0.1, -0.2], 3)
    trajectory.append_observation([7], 4)
    trajectory.append_generation([8], [-0.3], 4)
    assert trajectory.completion_ids.tolist() == [5, 6, 7, 8] and trajectory.context == [1, 2, 5, 6, 7, 8]
    assert trajectory.loss_mask.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(trajectory.behaviour_logps, np.float32([-0.1, -0.2, 0, -0.3]))
    assert trajectory.runs == [VersionRun(3, 2), VersionRun(4, 2)] and trajectory.versions.tolist() == [3, 3, 4, 4]
    assert trajectory.turns == [(0, 2), (3, 4)] and trajectory.drawn == 3


@given(PARTS)
def test_a_trajectory_is_the_parts_that_were_appended(parts):
    """Against lists that are joined one after the other."""
    trajectory, wanted, version = build(parts), {name: [] for name in ARRAYS}, 0
    for count, later, drawn in parts:
        version += later
        values = range(count), [-0.5 * drawn] * count, [version] * count, [drawn] * count
        for name, value in zip(ARRAYS, values, strict=True):
            wanted[name] += value
    assert arrays(trajectory) == wanted
    assert trajectory.drawn == sum(wanted["loss_mask"]) and len(trajectory) == len(wanted["versions"])
    versions = [run.version for run in trajectory.runs]
    assert versions == sorted(set(versions)) and all(run.count > 0 for run in trajectory.runs)
    edges = np.diff(np.array([False, *wanted["loss_mask"], False], np.int8))
    assert trajectory.turns == list(zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True))


@given(PARTS, PARTS)
def test_arrays_that_were_given_out_stay_as_they_are(parts, more):
    trajectory = build(parts)
    given_out, before = {name: getattr(trajectory, name) for name in ARRAYS}, arrays(trajectory)
    build([(count, later + 99, drawn) for count, later, drawn in more], trajectory)
    assert {name: array.tolist() for name, array in given_out.items()} == before
    with pytest.raises(ValueError, match="read-only"):
        trajectory.completion_ids[:] = 0


@given(PARTS, PARTS, st.floats(width=32, max_value=0, allow_nan=False, allow_infinity=False))
def test_a_stored_trajectory_goes_on_as_if_it_had_never_been_stored(parts, more, logp):
    trajectory = build(parts)
    trajectory.append_generation([9], [np.float32(logp)], 50)
    again = Trajectory.from_json(json.loads(json.dumps(trajectory.to_json())))
    for one in (trajectory, again):
        build([(count, later + 99, drawn) for count, later, drawn in more], one)
        one.status = "finished"
    assert arrays(again) == arrays(trajectory) and again.context == trajectory.context
    assert again.to_json() == trajectory.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.append_generation([1], [-0.1], 1), "version 1 comes after 2; expected numbers that never fall"),
        (lambda t: Trajectory("x", ()).append_generation([1], [-0.1], -1), "version -1 comes after 0"),
        (lambda t: t.append_generation([1], [-0.1, -0.2], 2), r"behaviour_logps has shape \(2,\) for 1 tokens"),
        (
            lambda t: t.append_generation([1], [np.nan], 2),
            r"behaviour_logps\[2\] is nan; a drawn token has a finite one",
        ),
        (lambda t: setattr(t, "status", "finishd"), "status is 'finishd', did you mean 'finished'"),
        (lambda t: (setattr(t, "status", "finished"), t.append_observation([1], 2)), "is finished; only a running one"),
    ],
)
def test_what_does_not_fit_is_named_and_adds_nothing(change, message):
    trajectory = Trajectory("task", (1, 2))
    trajectory.append_generation([5, 6], [-0.1, -0.2], 2)
    before = arrays(trajectory)
    with pytest.raises(ValueError, match=message):
        change(trajectory)
    assert arrays(trajectory) == before


def experts_of(count, seed=0, dtype=np.int8):
    return np.random.default_rng(seed).integers(0, 100, (count, 3, 2)).astype(dtype)


@given(PARTS, st.sampled_from([np.int8, np.int16]))
def test_recorded_experts_are_the_pieces_that_came(parts, dtype):
    """Of the first tokens of prompt and completion; a stored trajectory has them too, and records go on behind them."""
    trajectory, pieces, recorded = Trajectory("task", (1, 2)), [np.zeros((0, 3, 2), dtype)], 0
    for seed, (count, _, _) in enumerate(parts):
        trajectory.append_generation(range(count), np.full(count, -0.5), 4)
        pieces.append(experts_of(len(trajectory.context) - 1 - recorded, seed, dtype))
        recorded += len(pieces[-1])
        trajectory.append_experts(pieces[-1])
        trajectory = Trajectory.from_json(json.loads(json.dumps(trajectory.to_json())))
        assert trajectory.num_recorded == recorded
    if parts:
        assert trajectory.experts.dtype == dtype
        np.testing.assert_array_equal(trajectory.experts, np.concatenate(pieces))


def test_without_recorded_experts_nothing_is_stored():
    trajectory = build([(3, 0, True)])
    assert trajectory.experts is None and "experts" not in trajectory.to_json()


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (experts_of(5), "experts of 6 tokens, and the context has 5"),
        (experts_of(1, dtype=np.int16), r"experts are \('int16', \(3, 2\)\), those before \('int8', \(3, 2\)\)"),
        (experts_of(1)[:, :2], r"experts are \('int8', \(2, 2\)\), those before .* the model is another one"),
    ],
)
def test_experts_that_do_not_fit_are_refused_and_add_nothing(experts, message):
    trajectory = build([(3, 0, True)])
    trajectory.append_experts(experts_of(1))
    with pytest.raises(ValueError, match=f"trajectory of task 'task': {message}"):
        trajectory.append_experts(experts)
    np.testing.assert_array_equal(trajectory.experts, experts_of(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"behaviour_logps": "AAAAAA=="}, "behaviour_logps covers 1 tokens, completion_ids 2"),
        ({"runs": [[0, 3]]}, "runs covers 3 tokens, completion_ids 2"),
        ({"turns": [[0, 3]]}, "turns are .*; expected spans in order within 2 tokens"),
        ({"turns": [[1, 0]]}, "turns are"),
        ({"status": "done"}, "status is 'done'"),
    ],
)
def test_a_record_whose_parts_do_not_fit_is_refused(change, message):
    record = build([(2, 0, True)]).to_json() | change
    with pytest.raises(ValueError, match=f"trajectory of task 'task': {message}"):
        Trajectory.from_json(record)


def test_a_token_costs_the_same_however_long_the_trajectory_is():
    """32K tokens in pieces of 8 take 0.03 s; copies of all that is there took 0.9 s. Ten tries, for a busy machine."""

    def seconds():
        trajectory, begun = Trajectory("task", (1, 2)), time.process_time()
        for piece in range(4096):
            trajectory.append_generation(range(8), (-0.5,) * 8, piece // 100)
        return time.process_time() - begun

    assert min(seconds() for _ in range(10)) < 0.1
