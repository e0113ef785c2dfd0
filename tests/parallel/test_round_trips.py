"""A model from a Hugging Face folder to Orbax and back, twice, has the same bits on any number of devices."""

import sys

import pytest

from tests.conftest import FIXTURES
from tests.helpers.programs import output_of
from tests.launch.test_many_hosts import Program, free_port


def test_a_model_comes_back_from_two_devices_bit_for_bit():
    told = output_of("tests.helpers.round_trips", "2", "1", str(FIXTURES / "v25_yarn_mscale"))
    assert told.startswith("equal v25_yarn_mscale")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_all_official_models_come_back_bit_for_bit(golden, devices):
    models = sorted(str(path.parent) for path in golden.glob("*/config.json"))
    assert len(models) >= 5
    told = output_of("tests.helpers.round_trips", str(devices), "4", *models)
    assert {line.split()[1] for line in told.splitlines() if line.startswith("equal")} == {
        model.rpartition("/")[2] for model in models
    }


@pytest.mark.slow
def test_two_processes_save_and_restore_all_official_models_bit_for_bit(golden, tmp_path):
    models = sorted(str(path.parent) for path in golden.glob("*/config.json"))
    command = [sys.executable, "-m", "tests.helpers.round_trips", f"localhost:{free_port()}"]
    programs = [Program([*command, host, str(tmp_path), *models], tmp_path / host, {}) for host in ("0", "1")]
    assert [program.returncode for program in programs] == [0, 0], "".join(program.stderr for program in programs)
    told = [line for line in programs[1].stdout.splitlines() if line.startswith("equal")]
    assert {line.split()[1] for line in told} == {model.rpartition("/")[2] for model in models}
