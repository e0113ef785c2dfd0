"""An engine on several processes: the first one schedules, and the others run the same device programs.

All make the same `Engine`, on a mesh over the devices of all. The first one uses it as any other, and ends with
`close`; the others call `follow`:

    engine = Engine(config, slots=64, memory_bytes=…, mesh=mesh)
    if not engine.leads:
        follow(engine, weights)  # until the first process closes its engine
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ling_jax.distributed.broadcast import Broadcast
from ling_jax.engine.device import Device, Wanted
from ling_jax.engine.schedule import Chunks
from ling_jax.engine.step import Outputs, Rows, Slots
from pallas_kernels.platform import platform


class Operation(enum.IntEnum):
    """What all processes do next."""

    END, LOAD, SWAP, TILES, CHUNKS = range(5)


class SharedDevice(Device):
    """A `Device` of several processes: what the first one calls, the others do in `follow`.

    One message has the operation and all arrays: `rows` is (most tiles of a step, rows of each), `chunks` the shapes of
    the programs that read.
    """

    def __init__(self, *arguments: Any, slots: Slots, rows: tuple[int, int], chunks: tuple[tuple[int, int], ...]):
        super().__init__(*arguments)
        fields = [("operation", ()), ("argument", ()), ("tiles", (2,)), ("rows", (len(Rows._fields), *rows))]
        fields += [(f"slots_{name}", x.shape) for name, x in slots._asdict().items()]
        for number, (count, size) in enumerate(chunks):
            sizes = Chunks((count, size), (count, size), (count,), (count,))
            fields += [(f"chunks{number}_{name}", shape) for name, shape in sizes._asdict().items()]
        floats = {f"slots_{name}" for name, x in slots._asdict().items() if x.dtype == np.float32}
        # All entries have four bytes, so that a message is a vector of int32.
        layout = [(name, np.float32 if name in floats else np.int32, shape) for name, shape in fields]
        self._message, self._chunks = np.zeros(1, layout), chunks
        self._refused: ValueError | None = None
        self._link = Broadcast(self.mesh.devices.flat, self._message.nbytes // 4)

    @property
    def leads(self) -> bool:
        """Whether this is the process that schedules."""
        return self._link.leads

    def load(self, params: Any, version: int) -> str:
        """`Device.load`; the others load their own `weights(version)`."""
        self._tell(Operation.LOAD, version)
        return super().load(params, version)

    def swap(self) -> None:
        """`Device.swap`, by all."""
        self._tell(Operation.SWAP)
        super().swap()

    def run_tiles(self, rows: np.ndarray, slots: Slots, tiles: np.ndarray, only_draws: bool, wanted: Wanted) -> Outputs:
        """`Device.run_tiles`, by all."""
        message = self._message[0]
        message["rows"][:, : rows.shape[1]], message["tiles"][:] = rows, tiles
        self._put("slots", slots)
        self._tell(Operation.TILES, rows.shape[1] << 1 | only_draws)
        return super().run_tiles(rows, slots, tiles, only_draws, wanted)

    def read_chunks(self, chunks: Chunks, table: np.ndarray) -> None:
        """`Device.read_chunks`, by all."""
        number = self._chunks.index(chunks.tokens.shape)
        self._put(f"chunks{number}", chunks)
        self._message[0]["slots_table"][:] = table
        self._tell(Operation.CHUNKS, number)
        super().read_chunks(chunks, table)

    def close(self) -> None:
        """`follow` returns in all other processes."""
        self._tell(Operation.END)

    def follow_once(self, weights: Callable[[int], Any]) -> bool:
        """Does what the first process does next; False: it has closed its engine."""
        self._settle()
        message = self._link.receive().view(self._message.dtype)[0]
        argument = int(message["argument"])
        match int(message["operation"]):
            case Operation.CHUNKS:
                super().read_chunks(_taken(message, f"chunks{argument}", Chunks), message["slots_table"])
            case Operation.TILES:
                rows = message["rows"][:, : argument >> 1]
                slots = _taken(message, "slots", Slots)
                self.start_tiles(rows, slots, message["tiles"], bool(argument & 1))
            case Operation.SWAP:
                if self._next is None:  # the first process took weights that this one refused
                    raise self._refused or RuntimeError("no weights were loaded before they were to be used")
                super().swap()
            case Operation.LOAD:
                try:
                    super().load(weights(argument), argument)
                except ValueError as error:  # the first process raises it to its caller
                    self._refused = error
            case _:
                return False
        return True

    def _put(self, prefix: str, arrays: Any) -> None:
        for name, x in arrays._asdict().items():
            self._message[0][f"{prefix}_{name}"][:] = x

    def _tell(self, operation: Operation, argument: int = 0) -> None:
        if not self.leads:
            raise RuntimeError("this process follows: only the first process of the mesh may call its engine")
        self._message[0]["operation"], self._message[0]["argument"] = operation, argument
        self._settle()
        self._link.send(self._message.view(np.int32))

    def _settle(self) -> None:
        """On CPUs, waits for the last program: collectives of two programs that run at a time wait for each other."""
        if platform() == "cpu":
            jax.block_until_ready((self.pool, self._params, self._next))


def _taken(message: Any, prefix: str, kind: Any) -> Any:
    return kind(*(message[f"{prefix}_{name}"] for name in kind._fields))


def follow(engine: Any, weights: Callable[[int], Any]) -> None:
    """Runs this process's part of an engine until the first process closes its own.

    `weights(version)` are the parameters that the first process loads as this version: the same global arrays. Where
    they are refused, they are by all processes. A process that dies ends this one, if they were joined
    (`distributed.hosts`). Raises ValueError where this process is the first, or the mesh has one process alone.
    """
    if engine.leads:
        raise ValueError("this process is the first of the engine's mesh: it submits requests, and the others follow")
    while engine.device.follow_once(weights):
        pass
