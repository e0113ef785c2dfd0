"""Numbers that one process sends to all processes of a mesh, in messages of one fixed size."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Broadcast:
    """Messages of `size` int32 from the first of the devices' processes to all.

    Every process calls `send` or `receive` at the same place of its program. One compiled sum over all devices, of
    which one has the message and the others zeros: no message compiles anything, and all take as long.
    """

    def __init__(self, devices: Iterable[jax.Device], size: int):
        every = sorted(devices, key=lambda device: (device.process_index, device.id))
        here = jax.process_index()
        self.leads, self.size, self._shape = every[0].process_index == here, size, (len(every), size)
        mesh = Mesh(np.array(every), ("device",))
        self._split = NamedSharding(mesh, PartitionSpec("device"))
        self._first, *_ = own = [device for device in every if device.process_index == here]
        self._zeros = [jax.device_put(np.zeros((1, size), np.int32), device) for device in own]
        self._sum = jax.jit(lambda x_DX: jnp.sum(x_DX, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def send(self, message: np.ndarray) -> None:
        """Sends a message [size] int32 to the other processes, which call `receive`."""
        if message.shape != (self.size,) or message.dtype != np.int32:
            raise ValueError(f"a message is {message.dtype} {message.shape}; expected int32 ({self.size},)")
        self._summed([jax.device_put(message[None], self._first), *self._zeros[1:]])

    def receive(self) -> np.ndarray:
        """The next message of the first process."""
        return self._summed(self._zeros)

    def _summed(self, own: list[jax.Array]) -> np.ndarray:
        every = jax.make_array_from_single_device_arrays(self._shape, self._split, own)
        return np.asarray(self._sum(every).addressable_data(0))
