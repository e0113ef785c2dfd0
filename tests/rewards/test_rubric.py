import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax.rewards.rubric import focal_reward

TOLERANCES = {"float64": dict(rtol=0, atol=1e-9), "float32": dict(rtol=1e-4, atol=2e-6)}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("suffix", ["", "_ema"])
def test_focal_reward_equals_the_oracle(golden, x64, dtype, suffix):
    case = np.load(golden / "objectives/focal.npz")
    weights, options = case["w"].astype(dtype), {name: float(case[name]) for name in ("gamma", "eps")}
    pace = None
    for step, temperature in enumerate(case["T"]):
        merits, defects = case["u"][step].astype(dtype), case["n"][step].astype(dtype)
        last = pace if suffix else None
        found = focal_reward(
            merits,
            defects,
            weights,
            last_pace=last,
            temperature=float(temperature),
            decay=float(case["ema"]),
            **options,
        )
        pace = found.pace
        assert found.rewards.dtype == dtype
        for name, value in {"R": found.rewards, "f": found.focus, "pace": found.pace}.items():
            expected = case[name + suffix][step]
            np.testing.assert_allclose(value, expected, **TOLERANCES[dtype], err_msg=f"{name}, step {step}")


def test_no_gradient_goes_through_the_focus(golden, x64):
    case = np.load(golden / "objectives/focal.npz")
    for step, temperature in enumerate(case["T"]):
        merits, defects, weights = (jnp.asarray(x, float) for x in (case["u"][step], case["n"][step], case["w"]))

        def rewards(merits, defects=defects, weights=weights, temperature=float(temperature)):
            return focal_reward(merits, defects, weights, temperature=temperature).rewards

        jacobian = jax.jit(jax.jacobian(rewards))(merits)
        own = jnp.einsum("iik->ik", jacobian)
        np.testing.assert_allclose(own, case["dR_du"][step], rtol=0, atol=1e-9)
        assert not np.any(np.asarray(jacobian)[~np.eye(len(merits), dtype=bool)])


def test_weight_leaves_a_rubric_that_all_answers_satisfy():
    merits = np.array([[1.0, 0.3], [1.0, 0.6], [1.0, 0.1]])
    found = focal_reward(merits, np.zeros_like(merits), np.ones(2))
    assert found.focus[0] < 0.01 < found.focus[1]
    np.testing.assert_allclose(found.focus.sum(), 1, rtol=1e-6)
    assert found.rewards[1] > found.rewards[0] > found.rewards[2]


def test_an_answer_with_defects_has_a_negative_reward():
    found = focal_reward(np.array([[0.0, 0.1], [0.9, 0.8]]), np.array([[0.8, 0.9], [0.0, 0.1]]), np.ones(2))
    assert found.rewards[0] < 0 < found.rewards[1]


def test_it_runs_in_lower_precision_under_jit_and_over_groups():
    merits = jnp.full((5, 3, 2), 0.5, jnp.bfloat16)
    run = jax.jit(jax.vmap(focal_reward, in_axes=(0, 0, None)))
    found = run(merits, merits / 2, jnp.array([1, 3]))
    assert found.rewards.shape == (5, 3) and found.rewards.dtype == jnp.float32
    np.testing.assert_allclose(found.rewards, 0.25, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, -0.1])
def test_a_score_out_of_range_or_not_finite_is_refused(bad):
    good = np.full((2, 3), 0.5)
    worse = np.array([[0.5, 0.5, 0.5], [0.5, bad, 0.5]])
    with pytest.raises(ValueError, match=r"^merits\[1, 1\] is .* from 0 to 1"):
        focal_reward(worse, good, np.ones(3))
    with pytest.raises(ValueError, match=r"^defects\[1, 1\] is .* from 0 to 1"):
        focal_reward(good, worse, np.ones(3))


def test_weights_and_shapes_that_do_not_fit_are_refused():
    good = np.full((2, 3), 0.5)
    with pytest.raises(ValueError, match=r"weights\[2\] is 0"):
        focal_reward(good, good, np.array([1, 1, 0]))
    with pytest.raises(ValueError, match=r"expected \[N, K\], \[N, K\], \[K\]"):
        focal_reward(good, good[:1], np.ones(3))
    with pytest.raises(ValueError, match=r"last_pace is \(2,\)"):
        focal_reward(good, good, np.ones(3), last_pace=np.ones(2))
