"""What the tests of whole runs share."""

import pytest

from tests.helpers.rl_run import steps_compiled_once, write_start


@pytest.fixture(scope="module")
def compiled_once():
    with steps_compiled_once():
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"))
