"""What a rollout leaves behind."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rl.trajectory import Segment, Trajectory, append_observation, append_segment, segments

EMPTY = Trajectory("task", prompt_ids=(1, 2))
# (tokens, steps of the weights before them, whether a policy drew them)
PARTS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.booleans()), max_size=6)


def build(parts):
    trajectory, version = EMPTY, 0
    for count, later, drawn in parts:
        version += later
        if drawn:
            trajectory = append_segment(trajectory, range(count), np.full(count, -0.5), version)
        else:
            trajectory = append_observation(trajectory, range(count), version)
    return trajectory


def test_tool_output_carries_no_loss():
    trajectory = append_segment(EMPTY, [5, 6], [-0.1, -0.2], 3)
    trajectory = append_observation(trajectory, [7], 4)
    trajectory = append_segment(trajectory, [8], [-0.3], 4)
    assert trajectory.completion_ids.tolist() == [5, 6, 7, 8]
    assert trajectory.loss_mask.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(trajectory.behaviour_logps, np.float32([-0.1, -0.2, 0, -0.3]))
    assert segments(trajectory) == [Segment(0, 2, 3), Segment(2, 4, 4)]


@given(PARTS)
def test_segments_cover_the_completion_once_each_of_one_version(parts):
    trajectory = build(parts)
    found = segments(trajectory)
    covered = [segment.version for segment in found for _ in range(segment.start, segment.stop)]
    assert covered == trajectory.versions.tolist()
    assert all(a.stop == b.start and a.version < b.version for a, b in itertools.pairwise(found))


@given(PARTS, st.integers(0, 6))
def test_appending_leaves_what_was_there(parts, cut):
    whole, start = build(parts), build(parts[:cut])
    for name in ("completion_ids", "behaviour_logps", "versions", "loss_mask"):
        before = getattr(start, name)
        np.testing.assert_array_equal(getattr(whole, name)[: len(before)], before)
    assert len(EMPTY.completion_ids) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: append_segment(t, [1], [-0.1], 1), r"versions are \[2, 2, 1\]; expected numbers from 0 that never"),
        (lambda t: append_segment(EMPTY, [1], [-0.1], -1), r"versions are \[-1\]"),
        (lambda t: append_segment(t, [1], [-0.1, -0.2], 2), r"behaviour_logps has shape \(4,\), completion_ids \(3,\)"),
        (lambda t: append_segment(t, [1], [np.nan], 2), r"behaviour_logps\[2\] is nan; a drawn token has a finite one"),
        (lambda t: dataclasses.replace(t, status="finishd"), "status is 'finishd', did you mean 'finished'"),
        (lambda t: append_segment(dataclasses.replace(t, status="finished"), [1], [-0.1], 2), "only a running one"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        change(append_segment(EMPTY, [5, 6], [-0.1, -0.2], 2))
