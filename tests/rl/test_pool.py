"""Runs on several engines: no result depends on which of them drew a token, and one that fails is made anew."""

import json
import random
import threading

import pytest

from ling_jax.chat.end_tokens import end_ids
from ling_jax.checkpoint.folder import ModelFolder
from ling_jax.engine import Engine
from ling_jax.envs import find
from ling_jax.rl.collector import EngineError
from ling_jax.rl.loop import train
from ling_jax.rl.replay import replay
from tests.helpers.chatty import Chatty, Delayed
from tests.helpers.event_log import check_log
from tests.helpers.faults import assert_same_end
from tests.helpers.rl_run import lines_of, prepared, small_config, tokenizer

pytestmark = pytest.mark.usefixtures("compiled_once")
STALE = dict(max_staleness=4, max_retention=4)


@pytest.fixture
def slow_world(monkeypatch):
    """Running sums of two turns, whose sessions run in threads and answer after a random time."""
    monkeypatch.setattr(Chatty, "session", staticmethod(lambda: Delayed(lambda task, seed: (), Chatty.step)))
    monkeypatch.setitem(find._SHIPPED, "running_sums", Chatty)
    monkeypatch.setattr(ModelFolder, "end_ids", frozenset(range(7, 60)) | end_ids(tokenizer()))


def on_three(start, **options):
    rollout = dict(engines=3, slots=12, episodes=18, overlap=True, max_tokens=24, context=184)
    return small_config(start, reward="outcome", rollout=rollout | options.pop("rollout", {}), **options)


def test_a_stale_run_on_three_engines_replays_bit_for_bit_on_one(start, tmp_path, slow_world):
    config = on_three(start, steps=3)
    train(prepared(config, tmp_path))
    check_log(lines_of(tmp_path, "events"), **STALE, prompts_per_step=1, group_size=4)
    metrics = lines_of(tmp_path, "metrics")
    assert max(line["staleness/max"] for line in metrics) > 0
    assert max(line["mismatch_same_version/max"] for line in metrics) <= 1e-5
    assert replay(prepared(config, tmp_path)) == 3


def run_in_both_ways(start, folder, steps):
    """Without staleness, in turns on one engine and on three beside the steps."""
    for name, rollout in (("turns", {}), ("three", dict(engines=3, slots=12, overlap=True))):
        sizes = dict(slots=12, prompts_per_step=2) | rollout
        train(prepared(small_config(start, objective="grpo", rollout=sizes, steps=steps), folder / name))
    assert_same_end(folder / "turns", folder / "three")
    digests = [[event.get("weights") for event in lines_of(folder / name, "events")] for name in ("turns", "three")]
    assert digests[0] == digests[1] and sum(map(bool, digests[0])) == steps


def test_without_staleness_three_engines_lead_to_the_weights_of_one(start, tmp_path):
    run_in_both_ways(start, tmp_path, 3)


@pytest.mark.slow
def test_without_staleness_twenty_steps_on_three_engines_lead_to_the_weights_of_one(start, tmp_path, slow_world):
    run_in_both_ways(start, tmp_path, 20)


@pytest.fixture
def failing_steps(monkeypatch):
    """`failing_steps(share)`: from now on so many steps of engines fail."""
    step, rng, lock = Engine.step, random.Random(0), threading.Lock()

    def fail(share):
        def failing(self):
            with lock:
                fails = rng.random() < share
            if fails:
                raise MemoryError("no memory for this step")
            return step(self)

        monkeypatch.setattr(Engine, "step", failing)

    return fail


def test_engines_that_fail_are_made_anew_and_no_token_changes(start, tmp_path, slow_world, failing_steps, monkeypatch):
    config = on_three(start, steps=3)
    with monkeypatch.context():
        failing_steps(0.3)
        train(prepared(config, tmp_path))
    failures = [line for line in lines_of(tmp_path, "errors") if line["part"].startswith("engine")]
    assert len(failures) >= 2 and all("no memory for this step" in line["error"] for line in failures)
    check_log(lines_of(tmp_path, "events"), **STALE, prompts_per_step=1, group_size=4)
    statuses = {
        r["status"] for e in lines_of(tmp_path, "events") if e["kind"] == "taken" for r in e["rollouts"].values()
    }
    assert statuses <= {"finished", "truncated"}
    failing_steps(0.0)
    assert replay(prepared(config, tmp_path)) == 3


def test_engines_that_fail_each_time_end_the_run_which_goes_on_later(start, tmp_path, failing_steps):
    config = on_three(start, steps=2)
    failing_steps(1.0)
    with pytest.raises(EngineError, match="failed 3 times in a row; the last error: MemoryError: no memory") as raised:
        train(prepared(config, tmp_path))
    assert any("engine" in note and "errors.jsonl" in note for note in raised.value.__notes__)
    failing_steps(0.0)
    train(prepared(config, tmp_path))
    assert replay(prepared(config, tmp_path)) == 2


def test_a_run_may_go_on_with_another_number_of_engines(start, tmp_path):
    for engines, steps in ((3, 2), (1, 3), (2, 5)):
        train(prepared(on_three(start, steps=steps, rollout=dict(engines=engines)), tmp_path))
    assert replay(prepared(on_three(start, steps=5), tmp_path)) == 5


@pytest.mark.parametrize(
    ("rollout", "error"),
    [
        (dict(engines=5), "rollout.engines 5 does not divide rollout.slots 12"),
        (dict(engines=0), "rollout.engines is 0; it must be positive"),
        (dict(episodes=8), "rollout.episodes is 8, fewer than the 12 slots"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(start, rollout, error):
    with pytest.raises(ValueError, match=error):
        on_three(start, rollout=rollout)


def test_a_replay_on_another_machine_is_refused(start, tmp_path):
    config = on_three(start, steps=2)
    train(prepared(config, tmp_path))
    path = tmp_path / "fingerprints.jsonl"
    (line,) = map(json.loads, path.read_text().splitlines())
    path.write_text(json.dumps(line | {"fingerprint": "0123"}) + "\n")
    with pytest.raises(ValueError, match="from step 0 on an engine 0123 drew, and this one is"):
        replay(prepared(config, tmp_path))
