"""What the benchmark of ports measures with."""

import subprocess
import sys
import time

import pytest

from benchmarks.port_model import RandomReader, sized_config
from benchmarks.port_process import Program
from ling_jax.model import model_spec
from ling_jax.spec import count
from tests.helpers.faults import ROOT

GB = 10**9


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_a_model_has_about_the_size_that_is_asked_for(size):
    config = sized_config(size * GB)
    assert abs(2 * count(model_spec(config)) - size * GB) < 0.05 * size * GB
    assert config.hidden_size == 4096 and sum(map(config.is_full_attention_layer, range(config.num_layers))) == 1


def test_a_size_that_no_model_has_is_refused():
    with pytest.raises(ValueError, match=r"0\.5 GB are too few: the smallest model of this layout has 1\.\d\d GB"):
        sized_config(GB // 2)


def test_random_weights_are_as_wide_as_those_of_a_new_model():
    config = sized_config(2 * GB)
    weights = RandomReader(config, seed=0).read("embed", (slice(0, 64),))
    assert weights.shape == (64, 4096) and abs(weights.astype(float).std() - config.init_std) < 1e-4


def test_the_peak_counts_children(tmp_path):
    """A process whose child holds 60 MB."""
    child = "import time; held = bytearray(b'1') * 60_000_000; time.sleep(0.3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    with Program("timeit", "-n1", "-r1", parent, log=tmp_path / "log") as program:
        usage = program.wait()
    assert 60e6 < usage.peak < 150e6 and usage.seconds > 0.3


def test_a_program_that_fails_is_an_error_with_its_output(tmp_path):
    with (
        Program("no_such_module", log=tmp_path / "log") as program,
        pytest.raises(RuntimeError, match="No module named no_such_module"),
    ):
        program.wait()


def test_a_killed_program_is_gone(tmp_path):
    with Program("http.server", "0", log=tmp_path / "log") as program:
        assert program.is_killed_after(0.1)
    with Program("http.server", "--help", log=tmp_path / "log") as program:
        assert not program.is_killed_after(60)


@pytest.mark.slow
def test_an_interrupted_benchmark_removes_its_folder(tmp_path):
    command = [sys.executable, "-m", "benchmarks.port", "--gb=2.4", f"--scratch={tmp_path}"]
    program = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.rglob("*.safetensors")) and program.poll() is None:
        time.sleep(0.05)
    program.terminate()
    assert program.wait() != 0
    assert not list(tmp_path.iterdir())
