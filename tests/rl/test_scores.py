"""What the engine recorded while it drew is what it computes again: 20 steps of every stage of RL."""

import jax
import numpy as np
import pytest

from ling_jax.engine import score
from ling_jax.rl.learner import Learner
from ling_jax.rl.loop import make_learner, new_state
from ling_jax.run.workdir import unlock
from tests.helpers.rl_configs import CONFIGS, shrunk
from tests.helpers.rl_run import prepared, small_config

pytestmark = pytest.mark.usefixtures("compiled_once")


def check_scores(learner: Learner, steps: int) -> tuple[int, float]:
    """(tokens compared, largest difference from the training forward); recorded and scored ones are equal bits."""
    weights, compared, mismatch = {}, 0, 0.0
    take, taken = learner.rollouts.take, []
    learner.rollouts.take = lambda prompts, unscored: (taken.append(learner.rollouts.batch), take(prompts, unscored))
    for _ in range(steps):
        weights[learner.rollouts.version] = jax.tree.map(np.array, learner.state.params)
        metrics = learner.step().metrics
        mismatch = max(mismatch, metrics["mismatch_same_version/max"])
        episodes = [episode for group in taken.pop() for episode in group.episodes if episode is not None]
        for version, params in weights.items():
            drawn = [e for e in episodes if any(run.version == version for run in e.trajectory.runs)]
            found = score(params, [e.context for e in drawn], learner.collector.engine.config) if drawn else ()
            for episode, logps in zip(drawn, found, strict=True):
                t = episode.trajectory
                of_version = np.flatnonzero((t.versions == version) & t.loss_mask)
                np.testing.assert_array_equal(logps[len(t.prompt_ids) - 1 + of_version], t.behaviour_logps[of_version])
                compared += len(of_version)
    return compared, mismatch


def test_scores_are_the_recorded_log_probs(start, tmp_path):
    run = prepared(small_config(start), tmp_path)
    with make_learner(run, new_state(run)) as learner:
        compared, mismatch = check_scores(learner, 3)
    unlock(run.workdir, run.lock)
    assert compared > 50 and mismatch <= 3e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_the_recorded_log_probs_in_20_steps_of_every_stage(name, start, tmp_path):
    run = prepared(shrunk(name, start, steps=20, eval_tasks=0), tmp_path)
    with make_learner(run, new_state(run)) as learner:
        compared, mismatch = check_scores(learner, 20)
    unlock(run.workdir, run.lock)
    print(f"{name}: {compared} tokens, training forward within {mismatch:.2g}")
    assert compared > 200 and mismatch <= 3e-5
