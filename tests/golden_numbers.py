"""The official code's numbers beside ours."""

import dataclasses
import json

import jax
import numpy as np

from ling_jax import model
from ling_jax.checkpoint import hf_tensors, load_hf


def load_fixture(folder, dtype, **overrides):
    """(params, config, inputs, expected) of a fixture's folder."""
    params, config = load_hf(folder, dtype=dtype)
    meta = json.loads((folder / "meta.json").read_text())
    config = dataclasses.replace(config, slope_layer_offset=meta["slope_layer_offset"] or 0, **overrides)
    return params, config, dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "expected.npz"))


def check_forward(folder, dtype, tolerance: float, **overrides):
    """Logits of every head and the router's choices."""
    params, config, inputs, expected = load_fixture(folder, dtype, **overrides)
    run = jax.jit(model.forward, static_argnums=2)
    out = run(params, inputs["input_ids"], config, positions=inputs["position_ids"])
    np.testing.assert_allclose(out.logits, expected["logits"], rtol=0, atol=tolerance)
    for depth, logits in enumerate(out.mtp_logits):
        np.testing.assert_allclose(logits, expected[f"mtp_logits.{depth}"], rtol=0, atol=tolerance)
    chosen = [name for name in expected if name.startswith("topk_idx.")]
    for row, name in enumerate(sorted(chosen, key=lambda name: int(name.split(".")[1]))):
        order = np.sort(out.router.expert_index[row], axis=-1)
        np.testing.assert_array_equal(order.reshape(-1), np.sort(expected[name], axis=-1).reshape(-1), err_msg=name)
    if out.router is not None:
        assert int(out.router.drops.sum()) == 0


def check_loss(folder, dtype, loss_tolerance: float, gradient_tolerance: float, **overrides):
    """The losses, relative; gradients by official name: norm, first entries, largest entry, relative to the largest."""
    params, config, inputs, expected = load_fixture(folder, dtype, **overrides)
    run = jax.jit(jax.value_and_grad(model.loss, has_aux=True), static_argnums=3)
    (total, metrics), grads = run(
        params, inputs["input_ids"], inputs["labels"], config, positions=inputs["position_ids"]
    )
    np.testing.assert_allclose(total, expected["loss.total"], rtol=loss_tolerance)
    np.testing.assert_allclose(metrics["main"] / metrics["main_count"], expected["loss.main"], rtol=loss_tolerance)
    found = hf_tensors(grads, config)
    for name, wanted in json.loads((folder / "grads.json").read_text())["params"].items():
        flat = found[name].astype(np.float64).reshape(-1)
        if wanted is None:
            assert not flat.any(), name
            continue
        bound = gradient_tolerance * wanted["max_abs"]
        np.testing.assert_allclose(flat[:8], wanted["head8"], rtol=0, atol=bound, err_msg=name)
        np.testing.assert_allclose(np.abs(flat).max(), wanted["max_abs"], rtol=0, atol=bound, err_msg=name)
        np.testing.assert_allclose(np.linalg.norm(flat), wanted["norm"], rtol=gradient_tolerance, atol=bound)
