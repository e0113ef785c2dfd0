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
from ling_jax.parallel.sharding import make_mesh
from ling_jax.rl.batch import Layout
from ling_jax.rl.config import LoopConfig, ObjectiveConfig, RLConfig, RolloutConfig
from ling_jax.rl.loop import make_learner, new_state, train
from ling_jax.rl.replay import replay
from ling_jax.rl.step import make_scorer
from ling_jax.rl.updates import Programs, with_teachers
from ling_jax.run.workdir import unlock
from ling_jax.train.config import OptimizerConfig
from tests.helpers.faults import assert_same_end
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.rl_batch import CONFIG, LENGTH, logps_of, random_answers
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


def test_each_answer_is_scored_by_its_own_teacher():
    """Answers of two teachers in one batch, packed: 0 where nothing was drawn."""
    answers = [dataclasses.replace(answer, teacher=i % 2) for i, answer in enumerate(random_answers())]
    params = [jax.tree.map(jnp.asarray, random_params(CONFIG, dtype="float32", std=std)) for std in (0.1, 0.3)]
    score, layout = quick_jit(make_scorer(CONFIG)), Layout(2, 2, 2 * LENGTH)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    programs = Programs(
        mesh=mesh,
        link=None,
        part=layout,
        whole=layout,
        loss=None,
        floats=(),
        replays=None,
        step=None,
        old=None,
        reference=None,
        teachers=(score, score),
    )
    for answer in with_teachers(programs, params, answers):
        wanted = logps_of()(params[answer.teacher], answer.tokens[None])[0][0]
        np.testing.assert_allclose(answer.teacher_logps[1:], np.where(answer.mask[1:], wanted, 0), atol=2e-5)
        assert answer.teacher_logps[0] == 0


def all_logps(params, tokens):
    """[n - 1, W]: log-probs of every token at every position of one answer."""
    return jax.nn.log_softmax(model.forward(params, tokens[None], wide(MODEL)).logits[0, :-1], axis=-1)


def wide(config):
    return dataclasses.replace(config, compute_dtype="float64")


def oracle(answers, student, teachers):
    """(mean over drawn tokens of log student - log teacher, mean of the KL there, spread of the first), in float64."""
    gaps, kls = [], []
    with jax.enable_x64(True):
        in_64 = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params) for params in (student, *teachers)]
        run = jax.jit(all_logps)
        for answer in answers:
            tokens = np.pad(answer.tokens, (0, 184 - len(answer)))
            policy, teacher = (np.asarray(run(in_64[i], tokens)) for i in (0, 1 + answer.teacher))
            mask = np.pad(answer.mask, (0, 184 - len(answer)))[1:]
            gap = np.take_along_axis(policy - teacher, tokens[1:, None], axis=-1)[..., 0]
            gaps.append(gap[mask])
            kls.append((np.exp(policy) * (policy - teacher)).sum(axis=-1)[mask])
    gaps = np.concatenate(gaps)
    return gaps.mean(), np.concatenate(kls).mean(), gaps.std()


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

        def kept(state, answers, version):
            taken.append((answers, jax.tree.map(np.array, state.params)))
            return learn(state, answers, version)

        learner.learn = kept
        for step in range(12):
            reported.append(learner.step().metrics["reverse_kl"])
            if step in (0, 11):
                answers, student = taken[-1]
                mean, kl, spread = oracle(answers, student, known)
                np.testing.assert_allclose(reported[-1], mean, rtol=1e-4, atol=1e-5)
                assert abs(mean - kl) < 4 * spread / np.sqrt(sum(a.mask.sum() for a in answers)), (
                    "an estimate of the KL"
                )
                exact.append(kl)
    unlock(run.workdir, run.lock)
    assert {answer.teacher for answers, _ in taken for answer in answers} == {0, 1}
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
