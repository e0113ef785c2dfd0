"""What the engine recorded is what training computes, swap after swap; where it is not, the run stops and says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax.checkpoint.steps import steps_in
from ling_jax.engine import device
from ling_jax.rl.health import Unhealthy
from ling_jax.rl.loop import train
from tests.helpers.rl_run import lines_of, prepared, small_config

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture
def narrow_head(monkeypatch):
    """Engines whose head is rounded to bfloat16."""
    copy = device.decoding_copy

    def rounded(params, config):
        served = copy(params, config)
        return served | {"head": jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), served["head"])}

    monkeypatch.setattr(device, "decoding_copy", rounded)


def test_an_engine_that_rounds_its_head_stops_the_run_which_is_saved(start, tmp_path, narrow_head):
    config = small_config(start, max_mismatch=1e-4)
    with pytest.raises(Unhealthy, match=r"step 1: recorded log-probs are .* nats in the mean off .* is 0.0001"):
        train(prepared(config, tmp_path))
    assert steps_in(tmp_path / "checkpoints") == [1] and lines_of(tmp_path)[0]["mismatch_same_version/mean"] > 1e-4


def test_a_run_that_is_sound_goes_on(start, tmp_path):
    train(prepared(small_config(start, max_mismatch=1e-5, steps=3), tmp_path))
    assert len(lines_of(tmp_path)) == 3


def test_answers_that_are_all_the_same_stop_the_run(start, tmp_path):
    with pytest.raises(Unhealthy, match=r"the entropy is .* nats, below train.min_entropy 6"):
        train(prepared(small_config(start, min_entropy=6.0), tmp_path))


@pytest.mark.slow
def test_recorded_log_probs_stay_those_of_training_over_two_hundred_swaps(start, tmp_path):
    """With a learning rate of nearly nothing: what grows would be the swaps' own."""
    config = small_config(start, steps=200, save_every=100, dpr_steps=0, rollout=dict(engines=2, overlap=True))
    optimizer = type(config.optimizer)(peak_lr=1e-12, warmup_steps=0)
    train(prepared(type(config)(**{**vars(config), "optimizer": optimizer}), tmp_path))
    early, late = np.array([line["mismatch/max"] for line in lines_of(tmp_path)]).reshape(2, 100)
    print(f"\nlargest mismatch: {early.max():.2g} in the first hundred steps, {late.max():.2g} in the second")
    assert late.mean() <= 1.2 * early.mean()
    assert max(early.max(), late.max()) <= 3e-5  # rounding of a step's worst token, as in all stages
