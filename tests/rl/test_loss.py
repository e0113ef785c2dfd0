"""The loss of a batch is the objective's mean over what counts, whatever the rows that it is made of."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.objectives import OBJECTIVES
from ling_jax.rl.answers import Answer
from ling_jax.rl.batch import Batch, Layout, pack, unpack
from ling_jax.rl.config import ObjectiveConfig, ObjectiveOptions
from ling_jax.rl.loss import BatchLoss, describe_loss, make_loss
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.objective_numbers import close, load

GROUP, LENGTH = 2, 7
EVERY = [*((name, None) for name in OBJECTIVES), ("grpo", "token_mean")]


def answers_of(policy, old, behaviour, advantages, mask, sentence_ids=None, group_size=GROUP):
    """(answers, policy of each) of arrays [B, T] without the first token of an answer, which no policy draws."""
    behaviour = old if behaviour is None else behaviour
    sentence_ids = np.zeros(mask.shape, np.int32) if sentence_ids is None else sentence_ids

    def with_first(values, dtype):
        return np.concatenate([np.zeros(1, dtype), values.astype(dtype)])

    return [
        Answer(
            group=i // group_size,
            advantage=float(advantages.reshape(-1)[i]),
            tokens=np.zeros(mask.shape[1] + 1, np.int32),
            mask=with_first(mask[i], bool),
            behaviour_logps=with_first(behaviour[i], np.float32),
            ages=np.zeros(mask.shape[1] + 1, np.int32),
            sentence_ids=with_first(sentence_ids[i], np.int32),
            old_logps=with_first(old[i], np.float32),
            teacher_logps=with_first(behaviour[i], np.float32),
            reference_logps=with_first(policy[i], np.float32),  # carries the policy through `pack`
        )
        for i in range(len(mask))
    ]


def random_arrays(seed: int, rows: int):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (rows, LENGTH))
    policy, behaviour = np.minimum(old + rng.normal(0, 0.3, (2, rows, LENGTH)), 0)
    arrays = (policy, old, behaviour, rng.normal(size=rows))
    mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (rows, 1))
    return *(x.astype(np.float32) for x in arrays), mask, np.arange(LENGTH, dtype=np.int32) // 3 + 0 * mask


@functools.cache
def loss_of(name: str, aggregate: str | None, group_size: int, **options) -> BatchLoss:
    config = ObjectiveConfig(name=name, options=ObjectiveOptions(aggregate=aggregate, **options))
    return make_loss(config, group_size)


@functools.cache
def parts_of_loss(loss_key):
    """(the sum of the losses of the microbatches, its gradient) under jit."""
    loss = loss_of(*loss_key[0], **dict(loss_key[1]))

    def total(policy, batch: Batch):
        parts = [jax.tree.map(lambda x, m=m: x[m], batch) for m in range(len(policy))]
        return sum(loss(policy[m], None, part, None)[0] for m, part in enumerate(parts))

    return quick_jit(jax.value_and_grad(total))


def run(answers, layout: Layout, key, **options):
    """(loss, gradient of each answer's tokens)."""
    loss = loss_of(*key, **options)
    floats = ("old_logps", "teacher_logps", "reference_logps")
    batch = pack(answers, layout, loss.normaliser, None, floats)
    policy = batch.reference_logps
    value, grad = parts_of_loss((key, tuple(options.items())))(policy, batch.replace(reference_logps=None, count=None))
    return value, np.stack([found[1:] for found in unpack(np.asarray(grad), answers, layout)])


@pytest.mark.parametrize(("name", "aggregate"), EVERY)
@settings(max_examples=15)  # of which each has four layouts
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mean_over_the_answers_whatever_the_layout(name, aggregate, seed):
    """Three groups of two, of which one answer has no reward: in one microbatch and in several, alone in its row and
    packed, the loss and gradient are those of the objective of these answers."""
    *arrays, mask, ids = random_arrays(seed, 6)
    answers, key = answers_of(*arrays, mask, ids), (name, aggregate, GROUP)
    answers = answers[:3] + answers[4:]
    size = LENGTH + 1
    plain, of_plain = run(answers, Layout(1, 5, size), key)
    for layout in (Layout(5, 1, size), Layout(2, 2, 2 * size), Layout(1, 2, 3 * size)):
        packed, of_packed = run(answers, layout, key)
        np.testing.assert_allclose(packed, plain, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_packed, of_plain, rtol=1e-5, atol=1e-6)
    rows = [0, 1, 2, 4, 5]
    policy, old, behaviour, advantages = (array[rows] for array in arrays)
    if name == "lpo":  # whole groups: the lost answer as one without tokens
        policy, old, behaviour, advantages = arrays
        rows, mask[3] = list(range(6)), False
    objective, settings = OBJECTIVES[name], loss_of(*key).settings
    keywords = {"sentence_ids": ids[rows], "teacher_logps": behaviour}
    keywords = {name: value for name, value in keywords.items() if name in objective.keywords}
    wanted, _ = objective.loss(policy, old, behaviour, advantages, mask[rows], **keywords, **settings)
    np.testing.assert_allclose(plain, wanted, rtol=1e-5, atol=1e-6)


GOLDEN = {  # file, {option: the number that it is}, suffix of the expected numbers
    ("grpo", "seq_mean"): ("grpo", {"clip_low": "eps", "clip_high": "eps_hi_asym"}, ".grpo.loss.seq_mean.asym"),
    ("grpo", "token_mean"): ("grpo", {"clip_low": "eps", "clip_high": "eps"}, ".grpo.loss.token_mean.sym"),
    ("gspo", None): ("gspo", {"clip_low": "eps_lo", "clip_high": "eps_hi"}, ""),
    ("lpo", None): ("lpo", {"clip": "eps"}, ""),
    ("icepop", None): ("icepop", {"clip": "eps", "alpha": "alpha", "beta": "beta"}, ""),
    ("kpop", None): ("kpop_objective", {"clip": "eps", "phi": "phi"}, ".ratio_sym"),
}


@pytest.mark.parametrize(("name", "aggregate"), GOLDEN)
@pytest.mark.parametrize("parts", [1, 2])
def test_with_old_log_probs_of_other_weights_it_is_the_expected(golden, name, aggregate, parts):
    """As in the second step on a batch: ratios that are not 1, and clips that act; in one part and in two."""
    file, options, suffix = GOLDEN[name, aggregate]
    numbers = load(golden, file)
    at = lambda x: x[1] if name == "kpop" else x  # noqa: E731 - its numbers are of several phi
    group = 4 if name == "lpo" else 2
    answers = answers_of(
        numbers["logp"],
        numbers["logp_old"],
        numbers.get("logp_infer"),
        numbers["adv"],
        numbers["loss_mask"],
        numbers.get("sentence_id"),
        group_size=group,
    )
    given = {option: float(at(numbers[key]) if key == "phi" else numbers[key]) for option, key in options.items()}
    size = len(answers[0])
    layout = Layout(parts, -(-len(answers) // parts), size)
    loss, grad = run(answers, layout, (name, aggregate, group), **given)
    wanted = at(numbers[f"grad{suffix}"])
    close(-loss, at(numbers[f"J{suffix}"]), "float32")
    close(-grad, wanted, "float32")
    np.testing.assert_array_equal(grad == 0, wanted == 0)


def test_what_a_run_maximises_is_one_line():
    config = ObjectiveConfig(name="kpop", calibrate_phi=0.05, reference_kl=0.01)
    assert describe_loss(config, 8).endswith(
        "M = D(old||behaviour) <= phi and D(behaviour||old) <= phi, phi such that M = 0 for 0.05 of the tokens; "
        "minus 0.01 KL(policy, start)"
    )
    assert "groups of 8 rows" in describe_loss(ObjectiveConfig(name="lpo"), 8)
