"""Planted spikes are skipped, and nothing else is."""

import dataclasses
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.checkpoint import orbax
from ling_jax.run.loop import prepare, train
from ling_jax.train.spikes import MAX_IN_A_ROW, empty_history, judge, with_sigmas
from ling_jax.train.state import guarded
from tests.helpers.faults import final_state, metrics_of
from tests.helpers.small_run import small_config
from tests.helpers.tiny import assert_trees_equal, tiny_config
from tests.train.test_step import new_state, random_batch, train_step

pytestmark = pytest.mark.usefixtures("compiled_once")

WINDOW = 8
judged = jax.jit(judge)


def guarding(window=WINDOW, sigmas=6.0):
    return with_sigmas(empty_history(window), sigmas)


def judge_all(losses, norms=None, *, window=WINDOW, sigmas=6.0):
    """Whether each step of a run is a spike."""
    history, found = guarding(window, sigmas), []
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        finite = math.isfinite(loss) and math.isfinite(norm)
        history, spike = judged(history, jnp.float32(loss), jnp.float32(norm), finite)
        found.append(bool(spike))
    assert int(history.skipped) == sum(found)
    return found


def noisy(count, level=2.0, seed=0):
    return list(level + 0.05 * np.random.default_rng(seed).standard_normal(count))


def test_a_spike_of_the_loss_or_of_the_norm_is_found_and_a_low_value_is_not():
    losses = noisy(30)
    assert not any(judge_all(losses))
    assert [i for i, spike in enumerate(judge_all([*losses[:20], 4.0, *losses[20:], 0.1, 0.1])) if spike] == [20]
    norms = [1.0] * 20 + [5.0] + [0.1] * 10
    assert [i for i, spike in enumerate(judge_all([*losses, 2.0], norms)) if spike] == [20]


def test_the_first_half_of_a_window_is_never_skipped():
    assert judge_all([1.0, 100.0, 1.0, 1.0]) == [False] * 4
    assert judge_all([1.0, 1.0, 1.0, 1.0, 100.0])[-1]


def test_a_level_that_stays_is_accepted_after_a_limit_and_guarded_again():
    found = judge_all([*noisy(20), *noisy(30, level=9.0), 20.0])
    assert found == [False] * 20 + [True] * MAX_IN_A_ROW + [False] * (30 - MAX_IN_A_ROW) + [True]


def test_steps_that_are_not_finite_neither_count_nor_enter_the_history():
    losses = noisy(12)
    for bad in (math.nan, math.inf):
        assert judge_all([*losses, bad, bad, 4.0, losses[0]]) == [False] * 14 + [True, False]


@settings(max_examples=30)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.integers(8, 20))
def test_the_rule_is_the_documented_formula(losses, window):
    history, in_a_row, wanted = [], 0, []
    for loss in map(np.float32, losses):
        middle = np.median(np.float32(history)) if history else 0
        sigma = np.float32(1.4826) * np.median(np.abs(np.float32(history) - middle)) if history else 0
        above = 2 * len(history) >= window and loss - middle > np.float32(6) * max(sigma, np.float32(0.02))
        spike = above and in_a_row < MAX_IN_A_ROW
        in_a_row = in_a_row + 1 if spike else 0
        history = history if spike else [*([] if above else history), loss][-window:]
        wanted.append(bool(spike))
    assert judge_all(losses, window=window) == wanted


def batch_of_few(seed=0):
    """A batch in which three tokens have a loss: its gradient is that of three tokens, not of ninety."""
    batch = random_batch(seed)
    few = jnp.arange(batch["labels"].size).reshape(batch["labels"].shape) % 29 == 11
    return batch | {"labels": jnp.where(few, batch["labels"], -100)}


@pytest.mark.slow
def test_a_corrupt_batch_changes_parameters_moments_and_biases_in_no_bit():
    """After steps on one batch, another one has a far higher loss, and one of three tokens a far larger gradient."""
    step = train_step()
    learnt = guarded(new_state(), guarding())
    for _ in range(4):
        learnt, metrics = step(learnt, random_batch())
    history = guarding()
    for noise in np.linspace(0.98, 1.02, WINDOW):
        history, _ = judged(history, noise * metrics["loss"], noise * metrics["grad_norm"], True)
    state = before = guarded(learnt, history)
    for count, batch in enumerate((random_batch(1), batch_of_few()), start=1):
        state, found = step(state, batch)
        assert found["spike"] and not found["nonfinite"] and int(found["spikes"]) == count
        assert_trees_equal((state.params, state.opt_state), (before.params, before.opt_state))
        assert int(state.step) == int(before.step) + count and int(state.skipped_steps) == count
    assert found["grad_norm"] > 2 * metrics["grad_norm"]  # of the second
    state, found = step(state, random_batch())
    assert not found["spike"] and not np.array_equal(state.params["head"], before.params["head"])


SPIKE_STEP = 14
SMALL = dict(steps=18, batch_size=4, save_every=6, eval_every=0, log_every=2)
ON = SMALL | dict(spike_sigmas=6.0, spike_window=WINDOW)


def trained(corpus, workdir, *, corrupt=False, **fields):
    """The workdir of a run, with random tokens at one step where `corrupt`."""
    config = small_config(corpus, **fields)
    config = dataclasses.replace(config, model=tiny_config(num_layers=1, vocab_size=300))
    run = prepare(config, workdir)

    def corrupted(index, row):
        if not corrupt or index // 4 != SPIKE_STEP:
            return row
        tokens = np.random.default_rng(index).integers(0, 300, row["tokens"].shape).astype(row["tokens"].dtype)
        return row | {"tokens": tokens, "labels": np.where(row["labels"] < 0, row["labels"], tokens)}

    train(
        dataclasses.replace(
            run, corpus=dataclasses.replace(run.corpus, train=run.corpus.train.map_with_index(corrupted))
        )
    )
    return workdir


@pytest.fixture(scope="module")
def with_spike(corpus, tmp_path_factory):
    return trained(corpus, tmp_path_factory.mktemp("spike"), corrupt=True, **ON)


def bits(workdir, *, without="spikes/"):
    return {name: x.tobytes() for name, x in final_state(workdir).items() if not (without and name.startswith(without))}


def test_a_planted_spike_is_skipped_counted_and_told(corpus, tmp_path, capsys):
    lines = metrics_of(trained(corpus, tmp_path, corrupt=True, **ON))
    assert [line["step"] for line in lines if line["spike"]] == [SPIKE_STEP] and lines[-1]["spikes"] == 1
    assert [line["step"] for line in lines] == list(range(18)) and not any(line["nonfinite"] for line in lines)
    out = capsys.readouterr().out
    assert "spike step=15/18 loss=" in out and "not applied; its batch is rows 56 to 59 of the mixture" in out
    state = final_state(tmp_path)
    assert state["skipped_steps"] == state["spikes/skipped"] == 1 and state["opt_state/count"] == 17


def test_a_run_without_spikes_has_the_bits_of_one_that_does_not_look(corpus, tmp_path):
    off, on = trained(corpus, tmp_path / "off", **SMALL), trained(corpus, tmp_path / "on", **ON)
    assert bits(off) == bits(on)
    for line, wanted in zip(metrics_of(on), metrics_of(off), strict=True):
        assert line == wanted and line["spike"] is False and line["spikes"] == 0


@pytest.mark.slow
def test_a_run_that_was_stopped_around_a_spike_has_the_bits_of_one_that_was_not(with_spike, corpus, tmp_path):
    for steps in (13, 15, 18):
        trained(corpus, tmp_path, corrupt=True, **(ON | {"steps": steps}))
    assert bits(tmp_path, without="") == bits(with_spike, without="")
    for line, wanted in zip(metrics_of(tmp_path), metrics_of(with_spike), strict=True):
        assert line | {"eval_loss": 0} == wanted | {"eval_loss": 0}  # also where a start ended


@pytest.mark.slow
def test_looking_for_spikes_may_begin_and_end_at_any_start(corpus, tmp_path):
    off = trained(corpus, tmp_path / "off", **SMALL)
    for fields in (SMALL | {"steps": 4}, ON | {"steps": 8}, SMALL):
        trained(corpus, tmp_path / "run", **fields)
    assert bits(off) == bits(tmp_path / "run")


@pytest.mark.slow
def test_another_window_and_a_checkpoint_of_an_earlier_version_begin_a_new_history(with_spike, corpus, tmp_path):
    for name, fields in (("window", {"spike_window": 10}), ("earlier", {})):
        workdir = tmp_path / name
        shutil.copytree(with_spike, workdir)
        if name == "earlier":
            without_history(workdir / "checkpoints")
        trained(corpus, workdir, corrupt=True, **(ON | fields | {"steps": 21}))
        assert final_state(workdir)["spikes/count"] == 3
        assert metrics_of(workdir)[-1]["step"] == 20 and final_state(workdir)["opt_state/count"] == 20


def without_history(folder):
    """Rewrites the newest checkpoint as versions without a history wrote it."""
    with orbax.open_manager(folder, keep=1) as manager:
        state = manager.restore(18)["state"]
        step = state | {"step": state["step"]}
        del step["spikes"]
        config = orbax.load_config(folder)[0]
        manager.delete(18)
        orbax.save(manager, 18, step, config)
