"""The arithmetic equals the official code's."""

import itertools

import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.config import REMAT_POLICIES
from tests.conftest import DEFAULT, QUICK
from tests.helpers.golden_numbers import LOGITS, check_forward, check_loss, golden_models, load_fixture, quick_jit


@pytest.mark.parametrize("name", golden_models())
def test_float64_forward_equals_official(golden, x64, name):
    check_forward(golden / name, "float64")


@pytest.mark.parametrize("name", golden_models("v25_mtp_noqlora_eps"))
def test_float64_losses_and_gradients_equal_official(golden, x64, name):
    check_loss(golden / name, "float64")


@pytest.mark.parametrize("name", golden_models("v25_slope0_padpack"))
def test_float32_forward_equals_official(golden, name):
    check_forward(golden / name, "float32", compiler=DEFAULT)


@pytest.mark.parametrize("name", golden_models("v25_slope0_padpack"))
def test_float32_losses_and_gradients_equal_official(golden, name):
    check_loss(golden / name, "float32", compiler=QUICK if name == "v25_slope0_padpack" else DEFAULT)


# The two chunk sizes belong to parts that do not meet, so they vary together: each alone, ragged, and whole.
CHUNKS = {1: 7, 16: 1, 64: 128}
RUNS = list(itertools.product([True, False], REMAT_POLICIES, CHUNKS))


@pytest.mark.slow
@pytest.mark.parametrize(("scan_layers", "remat", "lightning_chunk"), RUNS)
def test_run_settings_do_not_change_the_numbers(golden, x64, scan_layers, remat, lightning_chunk):
    run = dict(scan_layers=scan_layers, remat=remat, lightning_chunk=lightning_chunk)
    check_loss(golden / "v25_mtp_noqlora_eps", "float64", loss_chunk=CHUNKS[lightning_chunk], **run)


@pytest.mark.parametrize("name", golden_models("v25_slope0_padpack", having="padpack_inputs.npz"))
def test_padded_and_packed_rows_equal_official_rows_alone(golden, x64, name):
    params, config, _, _ = load_fixture(golden / name, "float64")
    given, expected = (dict(np.load(golden / name / f"padpack_{part}.npz")) for part in ("inputs", "expected"))
    alone = expected["packed_logits"][given["packed_segment_ids"] > 0]  # [tokens of all rows, W]
    run = quick_jit(model.forward, static_argnums=2)
    for kind in ("left", "right", "packed"):
        tokens = given[f"{kind}_input_ids"]
        segment_ids = given["packed_segment_ids" if kind == "packed" else f"{kind}_attention_mask"]
        logits = jax.device_get(run(params, tokens, config, segment_ids=segment_ids).logits)
        np.testing.assert_allclose(logits[segment_ids > 0], alone, rtol=0, atol=LOGITS["float64"], err_msg=kind)
