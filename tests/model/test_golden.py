"""The arithmetic equals the official code's."""

import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.config import REMAT_POLICIES
from tests.conftest import FIXTURES
from tests.golden_numbers import check_forward, check_loss, load_fixture

V25 = ["v25_base", "v25_mtp_noqlora_eps", "v25_yarn_mscale", "v25_slope0_padpack"]
OTHERS = ["ling2_gqa_mtp", "ling2_padpack", "ringlinear2_base"]


@pytest.mark.parametrize("name", V25 + OTHERS)
def test_float64_forward_equals_official(golden, x64, name):
    check_forward(golden / name, "float64", 1e-9)


@pytest.mark.parametrize("name", ["v25_mtp_noqlora_eps", "v25_slope0_padpack"])
def test_float64_loss_and_gradients_equal_official(golden, x64, name):
    check_loss(golden / name, "float64", 1e-9, 1e-9)


@pytest.mark.parametrize("name", ["v25_yarn_mscale"])
def test_float32_equals_official(golden, name):
    check_forward(golden / name, "float32", 5e-4)
    check_loss(golden / name, "float32", 1e-5, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", V25 + OTHERS)
def test_float32_of_all_fixtures(golden, name):
    check_forward(golden / name, "float32", 5e-4)
    check_loss(golden / name, "float32", 1e-5, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in V25 + OTHERS if name not in ("v25_mtp_noqlora_eps", "v25_slope0_padpack")]
)
def test_float64_loss_and_gradients_of_all_fixtures(golden, x64, name):
    check_loss(golden / name, "float64", 1e-9, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("remat", REMAT_POLICIES)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_how_it_is_run_changes_no_number(golden, x64, scan_layers, remat, chunk):
    run = dict(scan_layers=scan_layers, remat=remat, lightning_chunk=chunk, loss_chunk=chunk)
    check_loss(golden / "v25_mtp_noqlora_eps", "float64", 1e-9, 1e-9, **run)


def test_a_clone_can_check_the_claim(x64):
    check_forward(FIXTURES / "v25_yarn_mscale", "float64", 1e-9)


@pytest.mark.parametrize("name", ["v25_slope0_padpack", "ling2_padpack"])
def test_padded_and_packed_rows_equal_rows_alone(golden, x64, name):
    params, config, _, _ = load_fixture(golden / name, "float64")
    given, expected = (dict(np.load(golden / name / f"padpack_{part}.npz")) for part in ("inputs", "expected"))
    run = jax.jit(model.forward, static_argnums=2)
    checked = 0
    for key in (key for key in expected if key.endswith("logits")):
        kind = key.removesuffix("_logits")
        tokens = given[f"{kind}_input_ids"]
        segment_ids = given.get(f"{kind}_segment_ids", given.get(f"{kind}_attention_mask"))
        out = run(params, tokens, config, segment_ids=segment_ids)
        live = np.asarray(segment_ids) > 0
        np.testing.assert_allclose(out.logits[live], expected[key][live], rtol=0, atol=1e-9, err_msg=kind)
        checked += 1
    assert checked >= 3
