"""Fixtures of the tests of training."""

import pytest

from tests.helpers.small_run import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder
