import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.objectives import calibrate_phi, kpop_loss
from ling_jax.objectives.kpop import binary_kl, kpop_mask
from tests.helpers.objective_numbers import BOTH, LOGPS, close, evaluate, load, objective, token_terms

EDGES = np.array([1e-6, 0.0, -1e-9, -1e-3, -0.7, -20.0, -100.0, -1e4])


@BOTH
def test_the_divergence_and_its_masks_at_every_edge_are_the_expected(golden, dtype):
    numbers = load(golden, "kpop_binary_kl")
    lp, lq = numbers["lp"], numbers["lq"]
    close(evaluate(binary_kl, dtype, lp, lq), numbers["d_pq"], dtype)
    close(evaluate(binary_kl, dtype, lq, lp), numbers["d_qp"], dtype)
    for symmetric, name in ((True, "mask_symmetric"), (False, "mask_asymmetric")):
        for phi, wanted in zip(numbers["phi"], numbers[name], strict=True):
            found = evaluate(kpop_mask, dtype, lp, lq, phi, symmetric=symmetric)
            np.testing.assert_array_equal(found, wanted, err_msg=f"{name}, phi {phi}")


@BOTH
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kappa", ["ratio", "one"])
def test_value_gradient_and_mask_are_the_expected(golden, dtype, kappa, symmetric):
    numbers = load(golden, "kpop_objective")
    arrays = [numbers[name] for name in ("logp", "logp_old", "logp_infer", "adv", "loss_mask")]
    options = dict(kappa=kappa, symmetric=symmetric, clip=float(numbers["eps"]))
    case = f"{kappa}_{'sym' if symmetric else 'asym'}"
    for row, phi in enumerate(numbers["phi"]):
        wanted = {
            name: numbers[f"{name}.{case}"][row] for name in ("J", "grad", "per_token", "keep", "masked_fraction")
        }
        value, grad, metrics = objective(kpop_loss, dtype, *arrays, phi=phi, **options)
        close(value, wanted["J"], dtype, f"J, phi {phi}")
        close(grad, wanted["grad"], dtype, f"grad, phi {phi}")
        np.testing.assert_array_equal(grad == 0, wanted["grad"] == 0)
        close(metrics["masked_fraction"], wanted["masked_fraction"], dtype)
        close(token_terms(kpop_loss, dtype, *arrays, phi=phi, **options), wanted["per_token"], dtype)
        keep = evaluate(kpop_mask, dtype, arrays[1], arrays[2], phi, symmetric=symmetric) & numbers["loss_mask"]
        np.testing.assert_array_equal(keep, wanted["keep"])


@pytest.mark.parametrize("phi", [0.0, 0.1])
def test_equal_policies_mask_nothing_at_any_log_prob(phi):
    assert (evaluate(binary_kl, "float32", EDGES, EDGES) == 0).all()
    logps = EDGES[None]
    metrics = objective(kpop_loss, "float32", logps, logps, logps, np.ones(1), np.ones_like(logps), phi=phi)[2]
    assert metrics["masked_fraction"] == 0


@given(p=LOGPS, q=LOGPS)
def test_the_divergence_is_finite_and_never_negative(p, q):
    found = np.asarray(binary_kl(np.float32(p), np.float32(q)))
    assert np.isfinite(found) and found >= 0


def test_kappa_is_the_ratio_up_to_its_cap():
    old, behaviour = np.array([[-0.5, -2.0]]), np.array([[-1.5, -2.0]])
    arrays = (old, old, behaviour, np.array([1.0]), np.ones((1, 2)))
    for cap, first in ((None, np.e), (2.0, 2.0), (5.0, np.e)):
        value = objective(kpop_loss, "float32", *arrays, phi=10.0, kappa_cap=cap)[0]
        np.testing.assert_allclose(value, (first + 1) / 2, rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), target=st.sampled_from([0.0, 0.05, 0.2, 0.25, 0.7, 1.0]))
def test_a_calibrated_phi_masks_the_target(seed, target):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (4, 25)).astype(np.float32)
    behaviour = (old + rng.normal(0, 0.3, old.shape)).astype(np.float32)
    mask = rng.random(old.shape) < 0.8
    old[~mask], behaviour[~mask] = np.nan, np.inf
    phi = evaluate(calibrate_phi, "float32", old, behaviour, mask, target_fraction=np.float64(target))
    kept = np.asarray(kpop_mask(old, behaviour, phi)) & mask
    assert abs((mask.sum() - kept.sum()) - target * mask.sum()) <= 1


def test_calibration_without_tokens_is_zero():
    assert evaluate(calibrate_phi, "float32", EDGES[None], EDGES[None, ::-1], np.zeros((1, 8)), 0.1) == 0


def test_bad_input_is_named():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"kpop: behaviour_logps is missing"):
        kpop_loss(x, x, None, np.zeros(2), x)
    with pytest.raises(ValueError, match=r"kpop: kappa is 'log'; expected one of ratio, one"):
        kpop_loss(x, x, x, np.zeros(2), x, kappa="log")
    with pytest.raises(ValueError, match=r"calibrate_phi: mask has shape \(3,\)"):
        calibrate_phi(x, x, np.ones(3), 0.1)
