"""Runs with several optimisation steps on a batch, a penalty to the reference and a calibrated phi."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax import model
from ling_jax.objectives.kpop import calibrate_phi
from ling_jax.rl.config import ObjectiveConfig
from ling_jax.rl.loop import make_learner, new_state, train
from ling_jax.rl.replay import replay
from ling_jax.run.workdir import unlock
from ling_jax.train.config import ModelChanges
from tests.helpers.faults import assert_same_end
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.rl_run import MODEL, prepared, small_config

pytestmark = pytest.mark.usefixtures("compiled_once")
EVERYTHING = ObjectiveConfig(name="kpop", reference_kl=0.1, calibrate_phi=0.2)


def several_steps(start, **train):
    """KPop with partial rollouts, whose batches of at most two prompts make a step of each."""
    sizes = dict(prompts_per_step=2, max_tokens=24, token_budget=90)
    train = dict(steps=6, updates_per_batch=2) | train
    return small_config(start, objective=EVERYTHING, rollout=sizes, **train)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """(workdir, its lines of metrics, its events) of a run in one go."""
    workdir = tmp_path_factory.mktemp("whole")
    train(prepared(several_steps(start), workdir))
    return workdir, *([json.loads(x) for x in (workdir / f"{n}.jsonl").open()] for n in ("metrics", "events"))


@quick_jit
def logps_of(params, batch):
    """[R, T] of a batch's rows by a plain forward pass, 0 where nothing was drawn."""
    rows = batch.rows
    logits = model.forward(params, rows.tokens, MODEL, segment_ids=rows.segment_ids).logits
    picked = jnp.maximum(rows.targets, 0)[..., None]
    logps = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), picked, axis=-1)[..., 0]
    return jnp.where(rows.mask, logps, 0)


def test_several_steps_on_a_batch_share_the_old_log_probs_of_the_trainer(start, tmp_path):
    """Those of the weights before the first step: its ratios are 1, those of the second are not."""
    run, sizes = prepared(several_steps(start), tmp_path), []
    with make_learner(run, new_state(run)) as learner:
        taken, learn = [], learner.learn

        def kept(*args):
            state, updates = learn(*args)
            taken.extend(updates)
            return state, updates

        learner.learn = kept
        for _ in range(6):
            before = jax.tree.map(np.array, learner.state.params)
            metrics, updates = learner.step().metrics, [*taken]
            taken.clear()
            for update in updates:
                batch = update.batch
                np.testing.assert_allclose(batch.rows.old_logps, logps_of(before, batch), atol=1e-4)
                wanted = quick_jit(calibrate_phi)(
                    batch.rows.old_logps, batch.rows.behaviour_logps, batch.rows.mask, 0.2
                )
                np.testing.assert_allclose(update.metrics["phi"], wanted, rtol=1e-5)
                assert (update.metrics["masked_fraction"] - 0.2) * batch.mask.sum() < 1.01  # a token at most
            for level in ("0.01", "0.99"):
                np.testing.assert_allclose(updates[0].metrics[f"ratio/{level}"], 1, atol=1e-4)
            for update in updates[1:]:
                assert update.metrics["ratio/0.99"] - update.metrics["ratio/0.01"] > 1e-3
            assert sorted(i for update in updates for i in update.groups) == list(range(metrics["groups"]))
            assert metrics["loss_tokens"] == sum(update.batch.mask.sum() for update in updates)
            assert metrics["mismatch_same_version/max"] <= 3e-5
            sizes.append(metrics["updates"])
    assert {*sizes} == {1, 2} and learner.state.opt_state.count == sum(sizes)
    unlock(run.workdir, run.lock)


def test_the_penalty_grows_from_zero_and_the_log_names_every_step(whole):
    _, lines, events = whole
    logged = [sum((event["step"], event["kind"]) == (i, "update") for event in events) for i in range(6)]
    assert logged == [line["updates"] for line in lines]
    assert 0 <= lines[0]["reference_kl"] < lines[-1]["reference_kl"] and lines[-1]["reference_kl"] > 1e-4
    assert all(0 <= line["groups_without_spread"] <= 1 for line in lines)
    assert max(line["staleness/max"] for line in lines) > 0 and max(line["masked_fraction"] for line in lines) > 0.1
    rates = [line["learning_rate"] for line in lines]
    np.testing.assert_allclose(rates[-1], 1e-2, rtol=1e-6)  # after a warm-up of two optimisation steps


def test_replay_has_the_same_steps(whole, start):
    assert replay(prepared(several_steps(start), whole[0])) == 6


def test_a_resumed_run_keeps_its_reference(whole, start, tmp_path):
    """Although the stage before has gone on; where its checkpoint is gone, the run does not begin."""
    before, workdir = tmp_path / "before", tmp_path / "run"
    shutil.copytree(start, before)
    train(prepared(several_steps(before, steps=2), workdir))
    shutil.copytree(workdir / "checkpoints" / "2", before / "checkpoints" / "2")
    (first,) = (path for path in (before / "checkpoints").iterdir() if path.name != "2")
    train(prepared(several_steps(before), workdir))
    assert_same_end(whole[0], workdir)
    shutil.rmtree(first)
    with pytest.raises(
        ValueError, match=r"reference_kl is 0\.1, a penalty to the weights that the run began with, .* resto"
    ):
        prepared(several_steps(before, steps=5), workdir)


def test_a_run_that_goes_on_and_a_replay_compute_as_it_began(start, tmp_path):
    """With the config's changes to the model, in the weights of the reference, too."""

    def run(steps):
        changes = ModelChanges(compute_dtype="bfloat16")
        return prepared(dataclasses.replace(several_steps(start, steps=steps), model=changes), tmp_path)

    first = run(2)
    train(first)
    resumed = run(3)
    assert first.reference.config.compute_dtype == resumed.reference.config.compute_dtype == "bfloat16"
    train(resumed)
    assert replay(run(3)) == 3
