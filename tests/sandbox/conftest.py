"""A sandbox of each tier, shared by the tests of a file."""

import pytest

from ling_jax.sandbox import Sandbox
from tests.helpers.boxes import TIERS, needs


@pytest.fixture(scope="module", params=TIERS)
def sandbox(request):
    needs(request.param)
    with Sandbox(request.param) as started:
        yield started


@pytest.fixture
def box(sandbox):
    with sandbox.open() as opened:
        yield opened
