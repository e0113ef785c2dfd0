"""Rows of a step on meshes that do not divide them."""

import pytest

from ling_jax.parallel.sharding import abstract_mesh
from ling_jax.train.programs import device_rows


@pytest.mark.parametrize(
    ("rows", "microbatches", "sizes", "expected"),
    [
        (8, 2, {}, 8),
        (8, 2, {"data": 4}, 8),
        (6, 1, {"data": 2, "expert": 2}, 8),
        (18_144, 18, {"fsdp": 128, "expert": 8}, 18_432),
        (6, 1, {"tensor": 4}, 6),
    ],
)
def test_rows_are_padded_to_whole_microbatches_of_all_devices(rows, microbatches, sizes, expected):
    assert device_rows(rows, microbatches, abstract_mesh(**sizes)) == expected
