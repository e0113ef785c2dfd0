"""The loss of a batch is the objective's mean over what counts, whatever the rows that it is made of."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.objectives import OBJECTIVES
from ling_jax.rl.batch import Batch
from ling_jax.rl.config import ObjectiveConfig, ObjectiveOptions
from ling_jax.rl.loss import describe_loss, make_loss
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.objective_numbers import close, load

GROUP, LENGTH = 2, 7
EVERY = [*((name, None) for name in OBJECTIVES), ("grpo", "token_mean")]


def batch_of(policy, old, behaviour, advantages, mask, sentence_ids=None) -> tuple[np.ndarray, Batch]:
    """(policy, batch) of arrays [B, T] without the first token of each row, which a batch has and no policy draws."""

    def padded(x):
        return np.pad(x, ((0, 0), (1, 0))) if x is not None else np.zeros((len(mask), mask.shape[1] + 1), np.int32)

    batch = Batch(
        tokens=None,
        live=None,
        mask=padded(mask.astype(bool)),
        behaviour_logps=padded(behaviour if behaviour is not None else old),
        ages=None,
        sentence_ids=padded(sentence_ids),
        advantages=advantages.reshape(-1).astype(np.float32),
        valid=np.ones(len(mask), bool),
        old_logps=padded(old),
        teacher_logps=padded(behaviour if behaviour is not None else old),
    )
    return policy, batch


def random_arrays(seed: int, rows: int):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (rows, LENGTH))
    policy, behaviour = np.minimum(old + rng.normal(0, 0.3, (2, rows, LENGTH)), 0)
    arrays = (policy, old, behaviour, rng.normal(size=rows))
    mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (rows, 1))
    return *(x.astype(np.float32) for x in arrays), mask, np.arange(LENGTH, dtype=np.int32) // 3 + 0 * mask


def taken(batch: Batch, rows) -> Batch:
    return jax.tree.map(lambda x: x[rows], batch)


@functools.cache
def parts_of_loss(name: str, aggregate: str | None, group_size: int, **options):
    """loss(policy, batch, parts) under jit: the sum of its parts, and the gradient of that."""
    config = ObjectiveConfig(name=name, options=ObjectiveOptions(aggregate=aggregate, **options))
    loss = make_loss(config, group_size)

    def total(policy, batch, parts):
        whole, size = loss.whole(batch), len(policy) // parts
        rows = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return sum(loss(policy[row], None, taken(batch, row), whole)[0] for row in rows)

    return quick_jit(jax.value_and_grad(total), static_argnums=2)


@pytest.mark.parametrize(("name", "aggregate"), EVERY)
@given(seed=st.integers(0, 2**32 - 1))
def test_microbatches_add_up_and_rows_without_a_reward_do_not_count(name, aggregate, seed):
    """Three groups of two: one answer of the second has no reward, and the third is empty."""
    *arrays, mask, ids = random_arrays(seed, 6)
    policy, batch = batch_of(*arrays, mask, ids)
    dead = np.array([False, False, False, True, True, True])
    for array in (batch.mask, batch.valid, batch.advantages):
        array[dead] = False
    run = parts_of_loss(name, aggregate, GROUP)
    (whole, grad), (parts, of_parts) = run(policy, batch, 1), run(policy, batch, 3)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_parts, grad, rtol=1e-5, atol=1e-6)
    alone = slice(0, 4 if name == "lpo" else 3)
    plain, of_plain = parts_of_loss(name, aggregate, GROUP if name == "lpo" else 1)(
        policy[alone], taken(batch, alone), 1
    )
    np.testing.assert_allclose(whole, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad[alone], of_plain, rtol=1e-5, atol=1e-6)
    assert not grad[dead].any()


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
    policy, batch = batch_of(
        numbers["logp"],
        numbers["logp_old"],
        numbers.get("logp_infer"),
        numbers["adv"],
        numbers["loss_mask"],
        numbers.get("sentence_id"),
    )
    given = {option: float(at(numbers[key]) if key == "phi" else numbers[key]) for option, key in options.items()}
    run = parts_of_loss(name, aggregate, 4 if name == "lpo" else 2, **given)
    loss, grad = run(policy, batch, parts)
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
