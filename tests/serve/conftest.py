"""One server that the tests of a file share."""

import pytest

from tests.helpers.served import running


@pytest.fixture(scope="module")
def shared():
    with running() as found:
        yield found


@pytest.fixture
def server(shared):
    """The shared server; a test must leave nothing in its engine."""
    yield shared
    shared.wait_until_idle()
