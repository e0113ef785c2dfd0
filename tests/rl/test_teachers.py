"""On-policy distillation: each row has the log-probs of its own task's teacher, and the student comes near them."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax import data, model
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.folder import load_model
from ling_jax.envs.sources import TaskSource
from ling_jax.rl.config import LoopConfig, ObjectiveConfig, RLConfig, RolloutConfig
from ling_jax.rl.loop import make_learner, new_state, train
from ling_jax.rl.replay import replay
from ling_jax.rl.step import make_scorer
from ling_jax.rl.teachers import teacher_logps
from ling_jax.run.workdir import unlock
from ling_jax.train.config import OptimizerConfig
from tests.helpers.faults import assert_same_end
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.rl_batch import CONFIG, logps_of, random_batch
from tests.helpers.rl_run import MODEL, prepared, tokenizer
from tests.helpers.tiny import random_params

SUMS = TaskSource(environment="running_sums", difficulties=(1, 2), count=20)
ORDERINGS = TaskSource(environment="ordering", difficulties=(2, 3), count=20)


def write_teacher(folder, seed):
    """A workdir of another random model."""
    orbax.save_params(folder / "checkpoints", model.init(jax.random.key(seed), MODEL), MODEL)
    data.save_tokenizer(tokenizer(), folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return [write_teacher(folder / str(seed), seed) for seed in (1, 2)]


def on_policy(start, teachers, **train) -> RLConfig:
    """Two sources of tasks with a teacher each; four prompts a step, two answers to each."""
    return RLConfig(
        start_from=str(start),
        tasks=(SUMS, ORDERINGS),
        teachers=tuple(map(str, teachers)),
        reward="outcome",
        objective=ObjectiveConfig(name="reverse_kl"),
        optimizer=OptimizerConfig(peak_lr=3e-2, warmup_steps=0, weight_decay=0.0),
        rollout=RolloutConfig(context=184, slots=16, group_size=2, prompts_per_step=4, max_tokens=24),
        train=LoopConfig(**(dict(steps=4, microbatches=2, save_every=2) | train)),
    )


@pytest.mark.parametrize("places", [1, 2, 3])
def test_each_row_is_scored_by_its_own_teacher(places):
    """However many groups are read at a time; empty rows, and positions where nothing was drawn, have 0."""
    batch = random_batch().replace(teacher=np.array([1, 1, 0, 0, -1, -1], np.int32))
    batch.mask[4:], batch.valid[4:] = False, False
    params = [jax.tree.map(jnp.asarray, random_params(CONFIG, dtype="float32", std=std)) for std in (0.1, 0.3)]
    score = quick_jit(make_scorer(CONFIG))
    logps = teacher_logps([score, score], params, batch, places, 2)
    for rows, number in ((slice(0, 2), 1), (slice(2, 4), 0)):
        wanted = logps_of()(params[number], batch.tokens[rows])[0]
        np.testing.assert_allclose(logps[rows, 1:], np.where(batch.mask[rows, 1:], wanted, 0), atol=2e-5)
    assert not logps[4:].any() and not logps[~batch.mask].any()


@jax.jit
def all_logps(params, batch):
    """[B, T - 1, W]: log-probs of every token at every position."""
    logits = model.forward(params, batch.tokens, wide(MODEL), segment_ids=batch.live).logits[:, :-1]
    return jax.nn.log_softmax(logits, axis=-1)


def wide(config):
    return dataclasses.replace(config, compute_dtype="float64")


def oracle(batch, student, teachers):
    """(mean over drawn tokens of log student - log teacher, mean of the KL there, spread of the first), in float64."""
    with jax.enable_x64(True):
        batch = jax.tree.map(np.asarray, batch)
        in_64 = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params) for params in (student, *teachers)]
        policy, *others = [np.asarray(all_logps(params, batch)) for params in in_64]
    teacher = np.where(batch.teacher[:, None, None] == 0, *others)
    mask, chosen = batch.mask[:, 1:], batch.tokens[:, 1:, None]
    gap = np.take_along_axis(policy - teacher, chosen, axis=-1)[..., 0]
    return gap[mask].mean(), (np.exp(policy) * (policy - teacher)).sum(axis=-1)[mask].mean(), gap[mask].std()


@pytest.mark.slow
def test_the_loss_is_the_kl_in_float64_and_falls(start, teachers, tmp_path):
    """12 steps take a third of it away; what each step reports is the mean gap of the very tokens that it drew."""
    config = on_policy(start, teachers, steps=12)
    rollout = dataclasses.replace(config.rollout, prompts_per_step=8, group_size=4, slots=32)
    run = prepared(dataclasses.replace(config, rollout=rollout), tmp_path)
    known = [load_model(folder).params for folder in teachers]
    exact, reported = [], []
    with make_learner(run, new_state(run)) as learner:
        taken, learn = [], learner.learn

        def kept(state, batch, version):
            taken.append((batch, jax.tree.map(np.array, state.params)))
            return learn(state, batch, version)

        learner.learn = kept
        for step in range(12):
            reported.append(learner.step().metrics["reverse_kl"])
            if step in (0, 11):
                batch, student = taken[-1]
                mean, kl, spread = oracle(batch, student, known)
                np.testing.assert_allclose(reported[-1], mean, rtol=1e-4, atol=1e-5)
                assert abs(mean - kl) < 4 * spread / np.sqrt(batch.mask.sum()), "an estimate of the KL"
                exact.append(kl)
    unlock(run.workdir, run.lock)
    assert {number for batch, _ in taken for number in batch.teacher.tolist()} == {0, 1}
    assert exact[1] < exact[0] * 2 / 3, (exact, reported)


@pytest.mark.slow
def test_a_run_that_goes_on_ends_in_the_same_bits_and_replays(start, teachers, tmp_path):
    copy = tmp_path / "teacher"
    shutil.copytree(teachers[1], copy)
    config = on_policy(start, [teachers[0], copy])
    train(prepared(config, tmp_path / "whole"))
    assert json.loads((tmp_path / "whole" / "origins.json").read_text()).keys() >= {*config.teachers}
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    with orbax.open_manager(copy / "checkpoints", keep=2) as manager:  # it has gone on
        orbax.save(manager, 7, {"params": model.init(jax.random.key(9), MODEL)}, MODEL)
    train(prepared(config, tmp_path / "cut"))
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    assert replay(prepared(config, tmp_path / "whole")) == 4


def test_teachers_that_cannot_score_the_students_tokens_are_refused(start, teachers, tmp_path):
    other, wider = tmp_path / "other", dataclasses.replace(MODEL, vocab_size=300)
    orbax.save_params(other / "checkpoints", model.init(jax.random.key(1), wider), wider)
    data.save_tokenizer(data.train_bpe(["other words"], 270), other / "tokenizer")
    with pytest.raises(ValueError, match="other has another tokenizer than"):
        prepared(on_policy(start, [teachers[0], other]), tmp_path / "run")
    short = tmp_path / "short"
    config = dataclasses.replace(MODEL, max_length=100)
    orbax.save_params(short / "checkpoints", model.init(jax.random.key(1), config), config)
    data.save_tokenizer(tokenizer(), short / "tokenizer")
    with pytest.raises(ValueError, match="short has max_length 100; it has to score rows that need 184"):
        prepared(on_policy(start, [short]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teachers": ()}, "only reverse_kl has teachers: name the teacher of each source"),
        ({"objective": ObjectiveConfig(name="grpo")}, "only reverse_kl has teachers: remove them"),
        ({"teachers": ("a", "b", "c")}, "teachers has 3 names and tasks 2 sources"),
        ({"teachers": ("a", "")}, r"teachers\[1\] is empty"),
    ],
)
def test_teachers_that_do_not_go_with_tasks_and_objective_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(on_policy("x", ["a", "b"]), **fields)


def test_a_task_has_the_teacher_of_its_source():
    config = on_policy("x", ["a", "b"])
    assert [config.teacher_of(number) for number in (0, 19, 20, 39)] == [0, 0, 1, 1]
    assert on_policy("x", ["a"]).teacher_of(39) == 0
    same = on_policy("x", ["a", "a"])
    assert same.teacher_names == ["a"] and same.teacher_of(39) == 0
