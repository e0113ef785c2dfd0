"""Runs that generate while the weights learn: the same promises as of those in turns, and a replay to prove them."""

import os
import signal
import time

import pytest

from ling_jax.checkpoint.steps import steps_in
from ling_jax.rl import loop
from ling_jax.rl.loop import train
from ling_jax.rl.replay import replay
from ling_jax.run.steps import Interrupted
from tests.helpers.event_log import check_log
from tests.helpers.faults import assert_same_end
from tests.helpers.rl_run import lines_of, prepared, small_config

pytestmark = pytest.mark.usefixtures("compiled_once")


def overlapping(start, **options):
    return small_config(start, rollout=dict(overlap=True) | options.pop("rollout", {}), **options)


@pytest.fixture
def slow_learning(monkeypatch):
    """Optimisation steps that take a quarter of a second."""
    learn = loop.learn

    def slow(*arguments):
        time.sleep(0.25)
        return learn(*arguments)

    monkeypatch.setattr(loop, "learn", slow)


def test_a_run_that_generates_beside_its_steps_replays_bit_for_bit(start, tmp_path, slow_learning):
    config = overlapping(start)
    train(prepared(config, tmp_path))
    metrics = lines_of(tmp_path, "metrics")
    assert sum(line["tokens_beside"] for line in metrics) > 0, "nothing was generated beside a step"
    assert max(line["mismatch_same_version/max"] for line in metrics) <= 1e-5
    assert 0 < max(line["staleness/max"] for line in metrics) <= 4
    check_log(lines_of(tmp_path, "events"), max_staleness=4, max_retention=4, prompts_per_step=1, group_size=4)
    assert {span["version"] for span in lines_of(tmp_path, "timeline")} == set(range(6)), "a version generated nothing"
    assert replay(prepared(config, tmp_path)) == 6


def test_without_staleness_the_weights_are_those_of_a_run_in_turns(start, tmp_path, slow_learning):
    """No rollout may meet newer weights, so that none begins beside a step."""
    for name, overlap in (("turns", False), ("overlap", True)):
        train(prepared(small_config(start, objective="grpo", rollout=dict(overlap=overlap)), tmp_path / name))
    assert_same_end(tmp_path / "turns", tmp_path / "overlap")
    assert all(line["tokens_beside"] == 0 for line in lines_of(tmp_path / "overlap", "metrics"))


def test_a_signal_beside_a_step_waits_for_it_and_the_run_goes_on(start, tmp_path, monkeypatch):
    learn, calls = loop.learn, []

    def signalled(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        return learn(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learn", signalled)
        with pytest.raises(Interrupted, match="saved at step 3"):
            train(prepared(overlapping(start), tmp_path))
    config = overlapping(start)
    train(prepared(config, tmp_path))
    assert len(calls) == 3 and replay(prepared(config, tmp_path)) == 6


def test_a_step_that_fails_beside_generation_ends_the_run_at_its_last_checkpoint(start, tmp_path, monkeypatch):
    """Its batch has left the rollouts, so it is not saved as one that waits; the checkpoint still has it."""
    learn, calls = loop.learn, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise MemoryError("no memory for the batch")
        return learn(*arguments)

    config = overlapping(start)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learn", failing)
        with pytest.raises(MemoryError):
            train(prepared(config, tmp_path))
    assert steps_in(tmp_path / "checkpoints") == [2] and not (tmp_path / "partial.json").exists()
    train(prepared(config, tmp_path))
    assert replay(prepared(config, tmp_path)) == 6


def test_a_run_may_go_on_in_turns_or_beside(start, tmp_path):
    for overlap, steps in ((True, 2), (False, 4), (True, 6)):
        config = small_config(start, rollout=dict(overlap=overlap), steps=steps)
        train(prepared(config, tmp_path))
    assert replay(prepared(config, tmp_path)) == 6
