"""What a run writes about itself."""

import json

import numpy as np

from ling_jax.run.metrics import MetricsWriter, read_metrics, to_line


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
