"""On-policy reverse KL beside float64 formulas, and its gradient in the mean over all tokens beside that of the KL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ling_jax.objectives import reverse_kl_loss
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.objective_numbers import BOTH, LOGPS, close, objective

VOCABULARY = 7


@BOTH
def test_values_and_gradients_are_those_of_the_formula(dtype):
    rng = np.random.default_rng(0)
    policy, behaviour, teacher = -rng.exponential(1.0, (3, 4, 9))
    mask = rng.random((4, 9)) < 0.8
    mask[2] = False
    weight = np.minimum(np.exp(policy - behaviour), 2)
    assert (weight == 2)[mask].any() and (weight < 2)[mask].any()
    terms = np.where(mask, weight * (teacher - policy), 0)
    value, grad, metrics = objective(
        reverse_kl_loss, dtype, policy, policy, behaviour, np.zeros(4), mask, teacher_logps=teacher
    )
    close(value, terms.sum() / mask.sum(), dtype)
    close(grad, terms / mask.sum(), dtype)
    close(metrics["reverse_kl"], -terms.sum() / mask.sum(), dtype)
    close(metrics["truncated_fraction"], (weight == 2)[mask].mean(), dtype)


@quick_jit
def mean_gradient(logits, drawn_from, teacher, behaviour):
    """The mean loss and its gradient by the logits, over the token that `drawn_from` [V] draws; float64."""

    def mean(logits):
        policy = jax.nn.log_softmax(logits)[:, None]
        one, none = jnp.ones((1, 1), bool), jnp.zeros(1)

        def loss(policy, behaviour, teacher):
            x = [a.reshape(1, 1) for a in (policy, behaviour, teacher)]
            return reverse_kl_loss(x[0], x[0], x[1], none, one, teacher_logps=x[2], cap=np.inf)[0]

        return jnp.sum(drawn_from * jax.vmap(loss)(policy, behaviour, teacher))

    return jax.value_and_grad(mean)(logits)


@quick_jit
@jax.value_and_grad
def kl_and_gradient(logits, teacher):
    logps = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logps) * (logps - teacher))


@given(seed=st.integers(0, 2**32 - 1), stale=st.booleans())
def test_over_all_tokens_it_is_the_kl_and_its_gradient(seed, stale):
    """Also where an older policy draws: the weights take that out."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        logits, teacher, older = (jnp.asarray(rng.normal(0, 2, VOCABULARY)) for _ in range(3))
        teacher, policy = jax.nn.log_softmax(teacher), jax.nn.log_softmax(logits)
        behaviour = jax.nn.log_softmax(older) if stale else policy
        value, grad = kl_and_gradient(logits, teacher)
        found, found_grad = mean_gradient(logits, jnp.exp(behaviour), teacher, behaviour)
        np.testing.assert_allclose(found, value, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found_grad, grad, rtol=1e-8, atol=1e-11)
        assert found >= -1e-12


def test_a_policy_that_is_its_teacher_has_no_loss_and_no_gradient():
    logps = -np.random.default_rng(1).exponential(1.0, (3, 5))
    value, grad, _ = objective(
        reverse_kl_loss, "float32", logps, logps, logps, np.zeros(3), np.ones((3, 5), bool), teacher_logps=logps
    )
    assert value == 0 and not grad.any()


def test_steps_on_the_formula_lead_to_the_teacher():
    """Gradient descent on sampled tokens alone takes nineteen twentieths of the KL away."""
    rng = np.random.default_rng(0)
    teacher = jax.nn.log_softmax(jnp.asarray(rng.normal(0, 2, VOCABULARY), jnp.float32))
    logits = jnp.zeros(VOCABULARY)
    rows = (64, 16)

    def sampled_loss(logits, tokens):
        policy = jax.nn.log_softmax(logits)[tokens]
        ones, zeros = jnp.ones(rows, bool), jnp.zeros(rows[0])
        behaviour = jax.lax.stop_gradient(policy)
        return reverse_kl_loss(policy, behaviour, behaviour, zeros, ones, teacher_logps=teacher[tokens])[0]

    def kl(logits):
        policy = jax.nn.log_softmax(logits)
        return float(jnp.sum(jnp.exp(policy) * (policy - teacher)))

    first, step = kl(logits), jax.jit(jax.grad(sampled_loss))
    for key in jax.random.split(jax.random.key(0), 60):
        logits -= 0.5 * step(logits, jax.random.categorical(key, logits, shape=rows))
    assert kl(logits) < first / 20 and first > 0.5


def test_the_teachers_log_probs_are_asked_for():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match="reverse_kl: teacher_logps has shape"):
        reverse_kl_loss(x, x, x, np.zeros(2), x, teacher_logps=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="reverse_kl: teacher_logps is missing"):
        reverse_kl_loss(x, x, x, np.zeros(2), x, teacher_logps=None)


RUN = quick_jit(jax.value_and_grad(reverse_kl_loss, has_aux=True))


@given(logps=arrays.arrays(np.float32, (4, 3, 5), elements=LOGPS), mask=arrays.arrays(bool, (3, 5)))
def test_finite_log_probs_give_finite_numbers_and_masked_ones_reach_nothing(logps, mask):
    policy, old, behaviour, teacher = logps
    (loss, metrics), grad = RUN(policy, old, behaviour, np.zeros(3), mask, teacher_logps=teacher)
    assert np.isfinite(loss) and np.isfinite(grad).all() and all(np.isfinite(x) for x in metrics.values())
    spoilt = [np.where(mask, x, np.nan) for x in logps]
    (again, _), same = RUN(*spoilt[:3], np.full(3, np.nan), mask, teacher_logps=spoilt[3])
    np.testing.assert_array_equal(again, loss)
    np.testing.assert_array_equal(same, grad)
    assert not grad[~mask].any()
