"""Numbers that one process sends to all processes of a mesh, in messages of one fixed size."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Broadcast:
    """Messages of `size` int32 from the first of the devices' processes to all.

    Every process calls `send` or `receive` at the same place of its program. One compiled sum over a device of each
    process: no message compiles anything, and all take as long.
    """

    def __init__(self, devices: Iterable[jax.Device], size: int):
        firsts: dict[int, jax.Device] = {}
        for device in sorted(devices, key=lambda device: (device.process_index, device.id)):
            firsts.setdefault(device.process_index, device)
        self.count, self.leads = len(firsts), min(firsts) == jax.process_index()
        mesh = Mesh(np.array(list(firsts.values())), ("process",))
        self._place = firsts[jax.process_index()]
        self._split, self.size = NamedSharding(mesh, PartitionSpec("process")), size
        whole = NamedSharding(mesh, PartitionSpec())
        self._sum = jax.jit(lambda x_PX: jnp.sum(x_PX, axis=0), out_shardings=whole)  # all but one are zeros

    def send(self, message: np.ndarray) -> None:
        """Sends a message [size] int32 to the other processes, which call `receive`."""
        self._all(message)

    def receive(self) -> np.ndarray:
        """The next message of the first process."""
        return self._all(np.zeros(self.size, np.int32))

    def _all(self, message: np.ndarray) -> np.ndarray:
        if message.shape != (self.size,) or message.dtype != np.int32:
            raise ValueError(f"a message is {message.dtype} {message.shape}; expected int32 ({self.size},)")
        own = jax.device_put(message[None], self._place)
        every = jax.make_array_from_single_device_arrays((self.count, self.size), self._split, [own])
        return np.asarray(self._sum(every).addressable_data(0))
