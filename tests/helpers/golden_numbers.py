"""The official code's numbers beside ours."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.checkpoint import hf_tensors, load_hf
from tests.conftest import QUICK, golden_folder

# float64: sums of some hundred terms of size ~10, every float32 literal of the official code widened (README of the
# numbers). float32: a few times what the official code differs from itself in float64, |logits| up to 8.
LOGITS = {"float64": 1e-9, "float32": 5e-4}
LOSSES = {"float64": 1e-9, "float32": 1e-5}  # relative
GRADIENTS = {"float64": 1e-9, "float32": 1e-3}  # relative to the leaf's largest entry
WEIGHTS = {"float64": 3e-7, "float32": 1e-4}  # of experts, up to 2.5; stored as float32


def golden_models(*quick: str, having: str = "config.json") -> list:
    """Parameters: the models whose folder has the file `having`. If `quick` names some, the others are slow tests."""
    names = sorted(path.parent.name for path in golden_folder().glob(f"*/{having}"))
    return [name if name in quick or not quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def load_fixture(folder, dtype, **overrides):
    """(params, config, inputs, expected) of a fixture's folder."""
    params, config = load_hf(folder, dtype=dtype)
    meta = json.loads((folder / "meta.json").read_text())
    config = dataclasses.replace(config, slope_layer_offset=meta["slope_layer_offset"] or 0, **overrides)
    return params, config, dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "expected.npz"))


def quick_jit(function, **options):
    return jax.jit(function, compiler_options=QUICK, **options)


def check_forward(folder, dtype, *, compiler=QUICK, **overrides):
    """Logits of every head, the router's choices and weights."""
    params, config, inputs, expected = load_fixture(folder, dtype, **overrides)
    run = jax.jit(model.forward, static_argnums=2, compiler_options=compiler)
    out = run(params, inputs["input_ids"], config, positions=inputs["position_ids"])
    np.testing.assert_allclose(out.logits, expected["logits"], rtol=0, atol=LOGITS[dtype])
    assert len(out.mtp_logits) == sum(name.startswith("mtp_logits.") for name in expected)
    for depth, logits in enumerate(out.mtp_logits):
        np.testing.assert_allclose(logits, expected[f"mtp_logits.{depth}"], rtol=0, atol=LOGITS[dtype])
    check_router(out.router, expected, dtype)


def check_router(router, expected, dtype):
    """Experts as sets and the weight of each, layer by layer; a fixture without them checks that nothing is dropped."""
    layers = sorted(int(name.split(".")[1]) for name in expected if name.startswith("topk_idx."))
    assert not layers or len(router.expert_index) == len(layers)
    for row, layer in enumerate(layers):
        index, weight = by_expert(router.expert_index[row], router.expert_weight[row])
        wanted_index, wanted_weight = by_expert(expected[f"topk_idx.{layer}"], expected[f"topk_weight.{layer}"])
        np.testing.assert_array_equal(index, wanted_index, err_msg=f"experts of layer {layer}")
        np.testing.assert_allclose(weight, wanted_weight, rtol=0, atol=WEIGHTS[dtype], err_msg=f"layer {layer}")
    assert not np.any(router.drops)


def by_expert(index, weight):
    """Both in the order of expert numbers."""
    order = np.argsort(np.asarray(index), axis=-1)
    return np.take_along_axis(np.asarray(index), order, -1), np.take_along_axis(np.asarray(weight), order, -1)


def check_loss(folder, dtype, *, compiler=QUICK, **overrides):
    """The losses, relative, and the gradient of every official tensor."""
    params, config, inputs, expected = load_fixture(folder, dtype, **overrides)
    run = jax.jit(jax.value_and_grad(model.loss, has_aux=True), static_argnums=3, compiler_options=compiler)
    (total, metrics), grads = run(
        params, inputs["input_ids"], inputs["labels"], config, positions=inputs["position_ids"]
    )
    check_losses(total, metrics, expected, dtype)
    wanted = json.loads((folder / "grads.json").read_text())
    check_gradients(hf_tensors(grads, config), wanted["params"], wanted["grad_norm_total"], dtype)


def check_losses(total, metrics, expected, dtype):
    found = {"loss.total": total, "loss.main": metrics["main"] / metrics["main_count"]}
    found |= {f"loss.mtp{d}": s / metrics["mtp_count"][d] for d, s in enumerate(metrics["mtp"])}
    assert found.keys() == {name for name in expected if name.startswith("loss.")}
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=LOSSES[dtype], err_msg=name)


def check_gradients(found, wanted, total_norm, dtype):
    """Norm, first entries, largest entry and its place, relative to the largest; experts' biases have none."""
    without = {name for name, numbers in wanted.items() if numbers is None} | (found.keys() - wanted.keys())
    assert all(name.endswith(".expert_bias") for name in without), without
    for name in without & found.keys():
        assert not found[name].any(), name
    for name in wanted.keys() - without:
        numbers, flat = wanted[name], found[name].astype(np.float64).reshape(-1)
        for label, value, expected, scale in (
            ("first entries", flat[:8], numbers["head8"], numbers["max_abs"]),
            ("largest entry", np.abs(flat).max(), numbers["max_abs"], numbers["max_abs"]),
            ("entry at the largest's place", abs(flat[numbers["argmax_abs"]]), numbers["max_abs"], numbers["max_abs"]),
            ("norm", np.linalg.norm(flat), numbers["norm"], numbers["norm"]),
        ):
            np.testing.assert_allclose(value, expected, 0, GRADIENTS[dtype] * scale, err_msg=f"{name}: {label}")
    norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in found.values()))
    np.testing.assert_allclose(norm, total_norm, rtol=GRADIENTS[dtype])
