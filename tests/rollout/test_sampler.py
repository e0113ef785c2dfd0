import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rollout.sampler import keep_nucleus, sample

LOGITS = np.random.default_rng(0).normal(0, 2, (1, 12)).astype(np.float32)


def draw(count, temperature, top_p):
    keys = jax.random.split(jax.random.key(1), count)
    logits = jnp.broadcast_to(LOGITS, (count, 12))
    return jax.jit(sample)(logits, keys, jnp.full(count, temperature), jnp.full(count, top_p))


def test_temperature_zero_takes_the_likeliest():
    tokens, logps = draw(5, 0.0, 1.0)
    assert set(np.asarray(tokens).tolist()) == {int(LOGITS.argmax())}
    np.testing.assert_allclose(logps, jax.nn.log_softmax(LOGITS[0]).max(), rtol=1e-6)


def test_frequencies_are_the_tempered_probabilities_and_logps_the_models():
    tokens, logps = draw(20_000, 0.7, 1.0)
    frequency = np.bincount(tokens, minlength=12) / 20_000
    wanted = np.asarray(jax.nn.softmax(LOGITS[0] / 0.7))
    assert np.abs(frequency - wanted).max() < 5 * np.sqrt(0.25 / 20_000)  # five standard deviations at the widest
    np.testing.assert_allclose(logps, jax.nn.log_softmax(LOGITS[0])[tokens], rtol=1e-6)


@given(seed=st.integers(0, 999), top_p=st.floats(0.0, 1.0))
def test_the_nucleus_is_the_smallest_that_holds_top_p(seed, top_p):
    logits = np.random.default_rng(seed).normal(0, 2, (1, 9)).astype(np.float32)
    kept = np.isfinite(keep_nucleus(jnp.asarray(logits), jnp.array([top_p], jnp.float32)))[0]
    probability = np.asarray(jax.nn.softmax(logits[0]), np.float64)
    assert kept[probability.argmax()]
    assert probability[kept].sum() >= top_p - 1e-5
    assert kept.sum() == 1 or probability[kept].sum() - probability[kept].min() < top_p + 1e-5
    assert probability[kept].min() >= probability[~kept].max(initial=0)


def test_rows_have_their_own_settings():
    logits = jnp.broadcast_to(LOGITS, (3, 12))
    keys = jnp.stack([jax.random.key(s) for s in (1, 1, 1)])
    tokens, _ = sample(logits, keys, jnp.array([0.0, 5.0, 5.0]), jnp.array([1.0, 1.0, 0.01]))
    assert tokens[0] == tokens[2] == LOGITS.argmax()
