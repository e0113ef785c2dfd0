"""What the tests of whole runs and of episodes share."""

import pytest

from tests.helpers.rl_run import steps_compiled_once, write_start
from tests.helpers.scripted_policy import play_script, use_scripts


@pytest.fixture(scope="module")
def compiled_once():
    with steps_compiled_once():
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture
def played(monkeypatch):
    """`played(task, turns)`: the episode of a policy that says these turns."""
    use_scripts(monkeypatch)
    return play_script
