"""Programs compile for TPUs that are not here; what cannot is refused in one line."""

import importlib.util
import json
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh

from ling_jax.compile.programs import check_state_fits
from ling_jax.compile.report import DoesNotFit
from ling_jax.compile.topology import CHIPS, describe
from ling_jax.config import model_config
from ling_jax.parallel.sharding import MESH_AXES
from ling_jax.train.config import DataConfig, LoopConfig, OptimizerConfig, PretrainConfig, Source
from tests.faults import ROOT

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def test_an_unknown_chip_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"'v5q:2x2' is unknown: 'v5q' is none of v5e, v5p, v6e, tpu7x"):
        describe("v5q:2x2")


def test_libtpu_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'ling-jax\[tpu\]'"):
        describe("v5p:2x2x1")


def test_a_state_that_does_not_fit_is_refused_before_compilation():
    config = PretrainConfig(
        model=model_config("ling-2.6-1t"),
        data=DataConfig(sources=(Source(kind="python"),), sequence_length=4096),
        optimizer=OptimizerConfig(peak_lr=1e-4),
        train=LoopConfig(steps=1, batch_size=64),
    )
    sizes = {axis: {"fsdp": 8, "expert": 8}.get(axis, 1) for axis in MESH_AXES}
    types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    mesh = AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=types)
    with pytest.raises(DoesNotFit, match=r"take \d+\.\d GB of every device, \d+\.\d GB too many.* 3 times further"):
        check_state_fits(config, mesh, CHIPS["v5p"])


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
