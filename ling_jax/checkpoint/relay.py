"""The way of hidden states through the layers of a model whose layers are divided among processes.

Process i of n has the layers i, i + n, i + 2 n, …. Rows follow each other: while a layer computes a row, the layer
behind it, in another process, computes the row before.

    layer 0, process 0   row 0   row 1   row 2
    layer 1, process 1           row 0   row 1   row 2
    layer 2, process 0                           row 0   row 1   row 2      after the work on layer 0

Every row of a layer is one program on one device of one process, so the bits do not depend on their number.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ling_jax.distributed.peers import ALONE, Peers


class Relay:
    """Hands the output of a layer, row by row, to the process that has the next layer.

    A process that is alone keeps it in memory. Several write a file for each row into a folder that they share, and the
    next process removes it; the coordination service carries only the message that it is there.
    """

    def __init__(self, peers: Peers = ALONE, folder: Path | None = None):
        self._peers, self._folder = peers, folder if peers.count > 1 else None
        self._kept: dict[tuple[int, int], jax.Array] = {}

    def own_layers(self, count: int) -> list[int]:
        """The layers of this process, ascending; [] where there are more processes than layers."""
        return self._peers.share(range(count))

    def send(self, layer: int, row: int, x_BTD: jax.Array) -> None:
        """Gives a row to the process of `layer`; it returns when the row is computed."""
        if self._folder is None:
            self._kept[layer, row] = jax.block_until_ready(x_BTD)
            return
        value = np.asarray(x_BTD)
        value.tofile(self._folder / _file(layer, row))
        self._peers.post([value.dtype.name, value.shape], self._message(layer, row))

    def receive(self, layer: int, row: int) -> Any:
        """The row [B, T, D] that the process before has sent, or will send."""
        if self._folder is None:
            return self._kept.pop((layer, row))
        dtype, shape = self._peers.take(self._message(layer, row))
        file = self._folder / _file(layer, row)
        x_BTD = np.fromfile(file, np.dtype(dtype)).reshape(shape)
        file.unlink()
        return x_BTD

    def _message(self, layer: int, row: int) -> str:
        return f"{self._folder.name}/{_file(layer, row)}"


def _file(layer: int, row: int) -> str:
    return f".layer_{layer}_row_{row}"
