"""Hidden states on their way from layer to layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax.checkpoint.relay import Relay
from tests.helpers.thread_peers import run_together


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rows_go_through_all_layers_bit_for_bit(tmp_path, count, dtype):
    """Three layers that add their number to two rows; a fourth process has none."""
    rows = [jax.random.normal(jax.random.key(row), (1, 5, 3)).astype(dtype) for row in range(2)]

    def forward(peers):
        relay, last = Relay(peers, tmp_path), {}
        for layer in relay.own_layers(3):
            for row, first in enumerate(rows):
                x_BTD = jnp.asarray(relay.receive(layer, row) if layer else first) + jnp.asarray(layer, dtype)
                if layer < 2:
                    relay.send(layer + 1, row, x_BTD)
                else:
                    last[row] = np.asarray(x_BTD)
        return last

    (found,) = [last for last in run_together(count, forward) if last]
    for row, first in enumerate(rows):
        wanted = np.asarray(first + jnp.asarray(1, dtype) + jnp.asarray(2, dtype))
        assert found[row].dtype == wanted.dtype and found[row].tobytes() == wanted.tobytes()
    assert not list(tmp_path.iterdir())
