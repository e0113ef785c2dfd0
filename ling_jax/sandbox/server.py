"""The spawn server: a small process that starts boxes for a client, so that the client, which has JAX, never forks.

It imports the standard library and its neighbours alone. It ends, and kills all that it started, when the client's end
of the socket closes or the client is gone. One event loop serves all boxes; commands of one box wait for each other.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys

from ling_jax.sandbox import init, wire
from ling_jax.sandbox.boxes import REMOVALS, BoxProcess, Ended
from ling_jax.sandbox.contract import Limits, SandboxError
from ling_jax.sandbox.proof import prove
from ling_jax.sandbox.tiers import make

REFILL_SECONDS = 0.02  # our choice: a command of a few milliseconds has the processor to itself


def main() -> None:
    """Runs with the number of the socket's descriptor as argument."""
    descriptor = int(sys.argv[2])
    become_subreaper()
    asyncio.run(Server(socket.socket(fileno=descriptor)).serve())


def become_subreaper() -> None:
    """Orphans of boxes become children of this process, on Linux."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(init.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Server:
    """The state of a server: its tier, its boxes by id, and ready ones."""

    def __init__(self, client: socket.socket):
        self.client, self.tier, self.boxes, self.warm = client, None, {}, []
        self.num_warm, self.tasks, self.refills = 0, set(), None

    async def serve(self) -> None:
        """Answers requests until the client is gone; afterwards nothing of the boxes is left."""
        reader, self.writer = await asyncio.open_connection(sock=self.client, limit=1 << 20)
        watch_parent(reader)
        try:
            while True:
                body, blobs = await receive(reader)
                task = asyncio.ensure_future(self.answer(body, blobs))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            await self.end()

    async def end(self) -> None:
        """Kills all boxes, removes what they leave, and ends the process."""
        try:
            for task in (*self.tasks, self.refills):
                if task:
                    task.cancel()
            for box in (*self.boxes.values(), *self.warm):
                box.kill()
            kill_descendants()
            while REMOVALS:
                await asyncio.wait(REMOVALS)
            if self.tier:
                self.tier.end()
        finally:
            os._exit(0)

    async def answer(self, body: dict, blobs: list[bytes]) -> None:
        """Runs a request and sends its reply, which holds the request's id."""
        try:
            reply, out = await getattr(self, f"do_{body['do']}")(body, blobs)
        except ValueError as error:
            reply, out = {"error": str(error), "kind": "value"}, []
        except (SandboxError, OSError) as error:
            reply, out = {"error": str(error), "kind": "sandbox"}, []
        except Exception as error:  # a mistake of the server: the client must not wait for ever
            reply, out = {"error": f"{type(error).__name__}: {error}", "kind": "sandbox"}, []
        with contextlib.suppress(ConnectionError):  # the client is gone, which `serve` sees too
            self.writer.write(wire.packed({"id": body["id"]} | reply, out))
            await self.writer.drain()

    async def do_start(self, body: dict, blobs: list[bytes]) -> tuple[dict, list]:
        """Makes the tier, proves it and fills the pool."""
        self.tier = make(body["tier"], body["bubblewrap"])
        if body["prove"]:
            await prove(self.tier)
        self.num_warm = body["warm"]
        await self.refill()
        return {"lacks": list(self.tier.lacks)}, []

    async def do_open(self, body: dict, blobs: list[bytes]) -> tuple[dict, list]:
        """A box from the pool, or a new one."""
        limits = Limits(**body["limits"])
        box = await self.ready_box()
        self.refill_later()
        try:
            box.limit(limits)
            if body["paths"]:
                await box.write(dict(zip(body["paths"], blobs, strict=True)))
        except BaseException:
            box.kill()
            raise
        self.boxes[body["id"]] = box
        return {"box": body["id"]}, []

    async def ready_box(self) -> BoxProcess:
        """A box of the pool that has not ended while it waited, or a new one."""
        while self.warm:
            box = self.warm.pop(0)
            if box.place.process.poll() is None:
                return box
            box.kill()
        return await BoxProcess.start(self.tier)

    def refill_later(self) -> None:
        """Fills the pool when the request that took a box has had its start."""
        if self.refills is None or self.refills.done():
            self.refills = asyncio.ensure_future(self.refill(REFILL_SECONDS))

    async def refill(self, seconds: float = 0.0) -> None:
        await asyncio.sleep(seconds)
        while len(self.warm) < self.num_warm:
            self.warm.append(await BoxProcess.start(self.tier))

    async def do_run(self, body: dict, blobs: list[bytes]) -> tuple[dict, list]:
        """Runs a command in a box."""
        result = await self.box(body).run(body["argv"], blobs[0], body["seconds"], body["env"])
        out, err = result.pop("out"), result.pop("err")
        return result, [out, err]

    async def do_once(self, body: dict, blobs: list[bytes]) -> tuple[dict, list]:
        """Opens a box, runs a command and closes the box: one request instead of three."""
        await self.do_open(body, blobs[1:])
        try:
            return await self.do_run(body | {"box": body["id"]}, blobs)
        finally:
            if box := self.boxes.pop(body["id"], None):
                box.kill()  # what is left of it goes behind the reply

    async def do_write(self, body: dict, blobs: list[bytes]) -> tuple[dict, list]:
        await self.box(body).write(dict(zip(body["paths"], blobs, strict=True)))
        return {}, []

    async def do_read(self, body: dict, blobs: list[bytes]) -> tuple[dict, list]:
        content = await self.box(body).read(body["path"])
        return {"found": content is not None}, [content or b""]

    async def do_files(self, body: dict, blobs: list[bytes]) -> tuple[dict, list]:
        found = await self.box(body).files()
        return {"paths": list(found)}, list(found.values())

    async def do_close(self, body: dict, blobs: list[bytes]) -> tuple[dict, list]:
        if box := self.boxes.pop(body["box"], None):
            await box.close()
        return {}, []

    def box(self, body: dict) -> BoxProcess:
        try:
            return self.boxes[body["box"]]
        except KeyError:
            raise Ended("this box is closed") from None


async def receive(reader: asyncio.StreamReader) -> tuple[dict, list[bytes]]:
    """The next request of the client."""
    head = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
    body, sizes = wire.parsed(head)
    return body, [await reader.readexactly(size) for size in sizes]


def watch_parent(reader: asyncio.StreamReader) -> None:
    """Ends the stream with the client, also where a fork of the client holds its end of the socket, and on signals."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, reader.feed_eof)

    def end_stream() -> None:
        loop.remove_reader(parent)
        reader.feed_eof()

    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            parent = os.pidfd_open(os.getppid())
            loop.add_reader(parent, end_stream)


def kill_descendants() -> None:
    """Kills whatever is below this process until the list is empty; orphans of boxes are its children."""
    init.kill_everyone("list", -1)
