"""What a run writes about itself."""

import json

import jax
import numpy as np
import pytest

from ling_jax import spec
from ling_jax.config import model_config
from ling_jax.model import model_spec
from ling_jax.train.metrics import (
    MetricsWriter,
    flops_per_token,
    frozen_flops_per_token,
    matmul_parameters,
    parameter_group,
    read_flops_per_row,
    read_metrics,
    to_line,
)


def test_a_resumed_run_logs_each_step_once(tmp_path):
    writer = MetricsWriter(tmp_path, first_step=0)
    writer.write([to_line(step, {"loss": np.float32(step)}) for step in range(5)])
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    writer = MetricsWriter(tmp_path, first_step=3)
    writer.write([to_line(step, {"loss": np.float32(10 * step)}) for step in range(3, 5)])
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 0), (1, 1), (2, 2), (3, 30), (4, 40)]


def test_metrics_of_an_older_version_are_read_by_their_names_of_today(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0, "bad": false, "held_out_loss": 2.5}\n{"step": 1, "nonfinite": true}\n')
    assert read_metrics(file) == [{"step": 0, "nonfinite": False, "eval_loss": 2.5}, {"step": 1, "nonfinite": True}]


def test_a_line_is_json_whatever_the_loss():
    line = json.dumps(to_line(3, {"loss": np.float32("nan"), "nonfinite": np.bool_(True)}), allow_nan=False)
    assert json.loads(line) == {"step": 3, "loss": "nan", "nonfinite": True}


@pytest.mark.parametrize(
    ("name", "active_billions"),
    # Published active counts hold both embedding matrices; a lookup multiplies nothing.
    [("ling-2.6-1t", 63.58 - 157184 * 8192 / 1e9), ("ling-2.6-flash", 7.449 - 157184 * 4096 / 1e9)],
)
def test_matmul_parameters_are_the_published_active_ones(name, active_billions):
    assert matmul_parameters(model_config(name, mtp_depth=0)) / 1e9 == pytest.approx(active_billions, rel=1e-3)


def test_flops_by_hand():
    """1T at 4096 tokens: 6 a weight, ten MLA layers of 64 heads x (192 + 128), seventy of 64 states of 128 x 128."""
    config = model_config("ling-2.6-1t", mtp_depth=0)
    attention = 10 * 3 * 4097 * 64 * 320 + 70 * 12 * 64 * 128 * 128
    assert flops_per_token(config, 4096) == 6 * matmul_parameters(config) + attention


@pytest.mark.parametrize(("tokens", "keys"), [(4096, 4097 / 2), (1, 4096)], ids=["prefill", "a token"])
def test_flops_of_reading_by_hand(tokens, keys):
    """Logits of the last token alone, keys of all tokens before, and no MTP."""
    config = model_config("ling-2.6-1t")
    head = 8192 * 157184
    weights = matmul_parameters(model_config("ling-2.6-1t", mtp_depth=0)) - head
    attention = 10 * 2 * keys * 64 * 320 + 70 * 4 * 64 * 128 * 128
    found = read_flops_per_row(config, tokens, 4096)
    assert found == pytest.approx(tokens * (2 * weights + attention) + 2 * head, rel=1e-12)


def test_what_is_frozen_has_no_weight_gradient():
    config = model_config("tiny-2.6")
    declared = model_spec(config)
    structure, names = jax.tree.structure(spec.abstract(declared)), spec.named_leaves(declared)
    mask = lambda keep: jax.tree.unflatten(structure, map(keep, names))  # noqa: E731
    assert frozen_flops_per_token(config, mask(lambda name: True)) == 0
    assert frozen_flops_per_token(config, mask(lambda name: False)) == 2 * matmul_parameters(config)
    head = frozen_flops_per_token(config, mask(lambda name: name != "head"))
    assert head == 2 * 2 * config.hidden_size * config.vocab_size  # for the trunk, and for one MTP depth


def test_mtp_without_a_weight_costs_nothing():
    """It is not computed, so its parameters count neither among the FLOPs nor among what freezing saves."""
    config, without = model_config("tiny-2.6", mtp_loss_weight=0.0), model_config("tiny-2.6", mtp_depth=0)
    assert flops_per_token(config, 256) == flops_per_token(without, 256)

    def nothing(config):
        return spec.tree_map(lambda _: False, model_spec(config))

    assert frozen_flops_per_token(config, nothing(config)) == frozen_flops_per_token(without, nothing(without))


def test_every_parameter_has_a_group():
    groups = {parameter_group(name) for name in spec.named_leaves(model_spec(model_config("tiny-2.6")))}
    assert groups == {"dense", "embed", "experts", "head", "lightning", "mla", "mtp", "norms", "router"}
