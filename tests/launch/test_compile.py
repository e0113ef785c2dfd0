"""Programs compile for TPUs that are not here; what cannot is refused in one line."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from configs.pretrain import ling_2_6_1t
from ling_jax.compile.programs import check_state_fits
from ling_jax.compile.report import DoesNotFit, state_bytes
from ling_jax.compile.topology import CHIPS, describe
from ling_jax.train.config import PretrainConfig, from_dict
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import device_rows
from ling_jax.train.state import abstract_state
from tests.faults import ROOT
from tests.parallel.test_sharding import abstract_mesh

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def test_an_unknown_chip_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"'v5q:2x2' is unknown: 'v5q' is none of v5e, v5p, v6e, tpu7x"):
        describe("v5q:2x2")


def test_libtpu_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'ling-jax\[tpu\]'"):
        describe("v5p:2x2x1")


def one_trillion(**mesh):
    config = from_dict(PretrainConfig, ling_2_6_1t.get_config().to_dict())
    return config, abstract_mesh(**(dataclasses.asdict(config.mesh) | mesh))


def test_the_pod_config_splits_over_its_pod():
    config, mesh = one_trillion()
    assert mesh.size == 1024
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    assert state_bytes(abstract_state(config.model, optimizer, mesh)) < 0.2 * CHIPS["v5p"].hbm_bytes
    assert device_rows(config.train.batch_size, config.train.microbatches, mesh) == 18 * mesh.size


def test_a_state_that_does_not_fit_is_refused_before_compilation():
    with pytest.raises(DoesNotFit, match=r"take \d+\.\d GB of every device, \d+\.\d GB too many.* 3 times further"):
        check_state_fits(*one_trillion(fsdp=8), CHIPS["v5p"])


def compile_tiny(*arguments):
    program = [sys.executable, "-m", "launch.compile", "--config=configs/pretrain/tiny_2_6.py", *arguments]
    return subprocess.run(program, capture_output=True, text=True, cwd=ROOT)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "prefill", "decode"])
def test_every_program_compiles_and_says_what_it_costs(tmp_path, program):
    file = tmp_path / "report.json"
    sizes = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.expert=2")
    done = compile_tiny("--topology=v5e:2x2", f"--program={program}", f"--json_out={file}", *sizes)
    assert done.returncode == 0, done.stderr
    fields = json.loads(file.read_text())
    assert fields["step_seconds_bound"] == max(fields["seconds"].values()) > 0
    assert 0 < fields["mfu_bound"] <= 1
    assert 0 < fields["hbm_peak_bytes"] < fields["hbm_bytes"]
    assert {"expert", "fsdp"} <= {axis for row in fields["collectives"] for axis in row["axes"]}


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology=v5e:two",), "topology 'v5e:two' does not exist"),
        (("--topology=v5e:2x2", "--config.mesh.fsdp=3"), "does not fill 4 devices"),
    ],
)
def test_what_cannot_be_compiled_is_refused(arguments, message):
    done = compile_tiny(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
