"""Sizes as people read them."""

import pytest

from ling_jax.messages import size_text


@pytest.mark.parametrize(
    ("nbytes", "text"), [(999, "999 bytes"), (525_828, "525.83 kB"), (1_840_000, "1.84 MB"), (2 * 10**12, "2.00 TB")]
)
def test_a_size_has_the_largest_unit_that_it_fills(nbytes, text):
    assert size_text(nbytes) == text
