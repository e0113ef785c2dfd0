"""The arithmetic equals the official code's."""

import itertools

import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.config import REMAT_POLICIES
from tests.conftest import DEFAULT, FIXTURES, QUICK
from tests.golden_numbers import (
    LOGITS,
    check_forward,
    check_loss,
    check_losses,
    load_fixture,
    quick_jit,
)

V25 = ["v25_base", "v25_mtp_noqlora_eps", "v25_yarn_mscale", "v25_slope0_padpack"]
OTHERS = ["ling2_gqa_mtp", "ling2_padpack", "ringlinear2_base"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [*V25, "ling2_gqa_mtp", "ringlinear2_base", slow("ling2_padpack")])
def test_float64_forward_equals_official(golden, x64, name):
    check_forward(golden / name, "float64")


@pytest.mark.parametrize("name", [*V25, *map(slow, OTHERS)])
def test_float64_losses_and_gradients_equal_official(golden, x64, name):
    check_loss(golden / name, "float64")


@pytest.mark.parametrize("name", ["v25_slope0_padpack", *map(slow, V25[:3] + OTHERS)])
def test_float32_forward_equals_official(golden, name):
    check_forward(golden / name, "float32", compiler=DEFAULT)


@pytest.mark.parametrize("name", ["v25_slope0_padpack", *map(slow, V25[:3] + OTHERS)])
def test_float32_losses_and_gradients_equal_official(golden, name):
    check_loss(golden / name, "float32", compiler=QUICK if name == "v25_slope0_padpack" else DEFAULT)


# The two chunk sizes belong to parts that do not meet, so they vary together: each alone, ragged, and whole.
CHUNKS = {1: 7, 16: 1, 64: 128}
RUNS = list(itertools.product([True, False], REMAT_POLICIES, CHUNKS))
FAST_RUNS = [(False, "dots", 16)]


@pytest.mark.parametrize(
    ("scan_layers", "remat", "lightning_chunk"), [run if run in FAST_RUNS else slow(*run) for run in RUNS]
)
def test_how_it_is_run_changes_no_number(golden, x64, scan_layers, remat, lightning_chunk):
    run = dict(scan_layers=scan_layers, remat=remat, lightning_chunk=lightning_chunk)
    check_loss(golden / "v25_mtp_noqlora_eps", "float64", loss_chunk=CHUNKS[lightning_chunk], **run)


def test_a_clone_can_check_the_claim(x64):
    check_forward(FIXTURES / "v25_yarn_mscale", "float64")


def test_a_clone_can_check_the_losses(x64):
    params, config, inputs, expected = load_fixture(FIXTURES / "v25_yarn_mscale", "float64")
    run = quick_jit(model.loss, static_argnums=3)
    total, metrics = run(params, inputs["input_ids"], inputs["labels"], config, positions=inputs["position_ids"])
    check_losses(total, metrics, expected, "float64")


@pytest.mark.parametrize("name", ["v25_slope0_padpack", slow("ling2_padpack")])
def test_padded_and_packed_rows_equal_official_rows_alone(golden, x64, name):
    params, config, _, _ = load_fixture(golden / name, "float64")
    given, expected = (dict(np.load(golden / name / f"padpack_{part}.npz")) for part in ("inputs", "expected"))
    run = quick_jit(model.forward, static_argnums=2)
    for kind in ("left", "right", "packed"):
        tokens = given[f"{kind}_input_ids"]
        segment_ids = given["packed_segment_ids" if kind == "packed" else f"{kind}_attention_mask"]
        logits = jax.device_get(run(params, tokens, config, segment_ids=segment_ids).logits)
        live, wanted = segment_ids > 0, expected[f"{kind}_logits"]
        np.testing.assert_allclose(logits[live], wanted[live], rtol=0, atol=LOGITS["float64"], err_msg=kind)
