import json
import subprocess
import sys

import pytest

from tests.faults import ROOT, metrics_of


@pytest.mark.slow
def test_the_demo_learns_more_than_counting(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.demo", f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the same command goes on" in done.stdout and "bit-equal" in done.stdout
    results = json.loads((tmp_path / "report.json").read_text())
    assert results["under the bigram"] >= 0.1
    assert results["tokens dropped by the experts"] == 0
    steps = [line["step"] for line in metrics_of(tmp_path / "pretrain")]
    assert steps == list(range(320))
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
