"""Messages of the first process of a run: the next operation of all processes, and the batch that it reads."""

import enum

import jax
import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.distributed.broadcast import Broadcast
from ling_jax.rl.batch import Batch, Layout, empty_batch

PIECE = 2**24  # int32 of a message: 64 MiB; our choice


class Operation(enum.IntEnum):
    """What all processes do next; some have an argument."""

    END, GENERATE, EVALUATE, OLD, REFERENCE, TEACHER, STEP, SAVE = range(8)


class Link:
    """Messages from the first process of a mesh to the others.

    For each `send_operation` of the first one the others call `receive_operation`, and `receive` for each `send`. A
    batch goes in pieces of one size, which devices hold for a moment.
    """

    def __init__(
        self, mesh: jax.sharding.Mesh, part: Layout, floats: tuple[str, ...], replays: ModelConfig | None = None
    ):
        """Batches have the rows and the length of `part`; `floats` and `replays` say which arrays any of them has."""
        devices = list(mesh.devices.flat)
        self._commands = Broadcast(devices, 2)
        largest = _message_of(empty_batch(part._replace(microbatches=1), floats, replays), 0).size
        self._pieces = Broadcast(devices, min(largest, PIECE))

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides."""
        return self._commands.leads

    def send_operation(self, operation: Operation, argument: int = 0) -> None:
        """The others run this operation next."""
        self._commands.send(np.array([operation, argument], np.int32))

    def receive_operation(self) -> tuple[Operation, int]:
        """The next operation and its argument."""
        operation, argument = self._commands.receive().tolist()
        return Operation(operation), argument

    def send(self, batch: Batch) -> None:
        """A batch of numpy arrays, without the microbatches that hold no answers."""
        self._commands.send(np.array([batch.count, 0], np.int32))
        for m in range(int(batch.count)):
            message, size = _message_of(batch, m), self._pieces.size
            for first in range(0, len(message), size):
                piece = message[first : first + size]
                self._pieces.send(np.pad(piece, (0, size - len(piece))))

    def receive(self, layout: Layout, floats: tuple[str, ...] = (), replays: ModelConfig | None = None) -> Batch:
        """The batch of `send`, which has this layout and these optional arrays (`pack`)."""
        count = int(self._commands.receive()[0])
        batch = empty_batch(layout, floats, replays)
        for m in range(count):
            words = sum(_words(array[m]) for array in _arrays(batch))
            data = b"".join(self._pieces.receive().tobytes() for _ in range(-(-words // self._pieces.size)))
            for array in _arrays(batch):
                part = array[m]
                part[...] = np.frombuffer(data[: part.nbytes], part.dtype).reshape(part.shape)
                data = data[_words(part) * 4 :]
        return batch.replace(count=np.int32(count))


def _arrays(batch: Batch) -> list[np.ndarray]:
    return jax.tree.leaves(batch.replace(count=None))


def _words(array: np.ndarray) -> int:
    return -(-array.nbytes // 4)


def _message_of(batch: Batch, microbatch: int) -> np.ndarray:
    """The arrays of a microbatch one behind the other, as int32."""
    parts = []
    for array in _arrays(batch):
        data = array[microbatch].tobytes()
        parts.append(np.frombuffer(data + bytes(-len(data) % 4), np.int32))
    return np.concatenate(parts)
