"""A box as the spawn server sees it: a process, a channel to the program in it, and limits."""

import asyncio
import marshal
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ling_jax.sandbox import init, places
from ling_jax.sandbox.contract import Limits, SandboxError
from ling_jax.sandbox.poller import watch

PIECE = 1 << 20
MAX_REPLY = 1 << 20  # beside the bytes that limits allow
GRACE_SECONDS = 5.0  # our choice: for the kills behind a deadline; later the box itself is killed
START_SECONDS = 20.0  # our choice: for a box to become ready
STATUSES = {init.EXITED: "exited", init.TIMEOUT: "timeout", init.SIGNALLED: "killed"}
REMOVALS: set[asyncio.Future] = set()  # that are not done
REMOVERS = ThreadPoolExecutor(2, "remover")  # others do not wait for hostile folders
SOURCE = Path(init.__file__).read_text(encoding="utf-8")
CODES = {True: marshal.dumps(compile(SOURCE, "init.py", "exec")), False: marshal.dumps(SOURCE, 2)}


class Ended(SandboxError):
    """The box has been closed or killed."""


def framed(value) -> bytes:
    data = marshal.dumps(value, 2)
    return len(data).to_bytes(4, "big") + data


class BoxProcess:
    """A running box. `place` is what its tier keeps for it."""

    def __init__(self, tier, place, reader, writer):
        self.tier, self.place, self.reader, self.writer = tier, place, reader, writer
        self.turn, self.limits, self.rlimits, self.ended = asyncio.Lock(), Limits(), {}, ""
        self.ending = self.removal = None

    @classmethod
    async def start(cls, tier) -> "BoxProcess":
        """Starts the program of a box and sends it its code. It is ready when it has answered once."""
        ours, theirs = socket.socketpair()
        try:
            place = tier.start(theirs.fileno(), [sys.executable, "-I", "-S", "-c", init.BOOT, str(theirs.fileno())])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        box = cls(tier, place, reader, writer)
        code = CODES[tier.same_python]
        writer.write(len(code).to_bytes(4, "big") + code + framed([place.work, tier.signals]))
        settled = asyncio.get_running_loop().run_in_executor(None, tier.settle, place)
        try:
            await box.ask(["read", "", 0], 1, START_SECONDS)
            await settled
        except Ended as error:
            await settled
            why = places.reason(place)
            await box.removal
            message = f"{tier.name}: a box did not start: {why or error}"
            raise SandboxError(f"{message}; {tier.advice}" if tier.advice else message) from None
        return box

    def limit(self, limits: Limits) -> None:
        """Sets the limits of a box that has run nothing yet."""
        self.limits = limits
        self.rlimits = self.tier.limit(self.place, limits)

    async def ask(self, request: list, max_reply: int, seconds: float) -> bytes:
        """Sends a request and returns the reply; a box that breaks the protocol or is late is killed."""
        async with self.turn:
            if self.ended:
                raise Ended(self.ended)
            try:
                reply = await asyncio.wait_for(self._exchange(request, max_reply), seconds)
            except TimeoutError:
                self._give_up("the box did not answer in time")
            except (asyncio.IncompleteReadError, ConnectionError):
                self._give_up("the box has ended")
            except BaseException:
                self.kill()
                raise
        if reply[0] == 1:  # the request failed; the box works on
            raise SandboxError(reply[1:1000].decode("utf-8", "replace"))
        if reply[0] == 2:
            raise ValueError(reply[1:1000].decode("utf-8", "replace"))
        return reply[1:]

    async def _exchange(self, request: list, max_reply: int) -> bytes:
        self.writer.write(framed(request))
        await self.writer.drain()
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        if not 1 <= size <= max_reply + MAX_REPLY:
            self._give_up("the box sent a reply that is too long")
        return await self.reader.readexactly(size)

    def _give_up(self, why: str):
        self.ended = self.ended or why
        self.kill()
        raise Ended(self.ended)

    async def run(self, argv: list[str], stdin: bytes, seconds: float | None, env: dict[str, str]) -> dict:
        """Runs a command; a box that ends meanwhile gives a result too, since foreign code may be the reason."""
        seconds = self.limits.seconds if seconds is None else min(seconds, self.limits.seconds)
        cap, begun = self.limits.output_bytes, time.monotonic()
        request = ["run", argv, stdin, seconds, self.place.environment | env, cap, self.rlimits]
        memory_kills, disk_kills = self.place.memory_kills(), self.place.disk_kills
        poller = asyncio.ensure_future(watch(self.place, self.limits)) if places.is_polled(self.place) else None
        try:
            reply = await self.ask(request, 2 * cap, seconds + GRACE_SECONDS)
            ending, code, dropped, out, err = parsed_result(reply, cap)
        except Ended:
            if self.ended == "closed":
                raise
            late = time.monotonic() - begun >= seconds
            ending, code, dropped, out, err = init.TIMEOUT if late else init.SIGNALLED, 0, False, b"", b""
        finally:
            if poller:
                poller.cancel()
        status = STATUSES.get(ending, "killed")
        if status == "killed":
            over_disk = code == signal.SIGXFSZ or self.place.disk_kills > disk_kills
            status = "memory" if self.place.memory_kills() > memory_kills else "disk" if over_disk else "killed"
        seconds = time.monotonic() - begun
        code = code if status == "exited" else None
        return {"status": status, "code": code, "truncated": dropped, "seconds": seconds, "out": out, "err": err}

    async def write(self, contents: dict[str, bytes]) -> None:
        """Writes files, in messages of bounded size: the box's memory may be small."""
        for pieces in batches(contents):
            await self.ask(["write", pieces], 0, START_SECONDS)

    async def read(self, path: str) -> bytes | None:
        limit = self.limits.disk_bytes
        reply = await self.ask(["read", path, limit], limit, START_SECONDS)
        return reply[1:] if reply[:1] == b"\1" else None

    async def files(self) -> dict[str, bytes]:
        limits = self.limits
        names = limits.files * 4096
        return parsed_files(await self.ask(["files", limits.disk_bytes, limits.files], limits.disk_bytes + names, 60.0))

    async def close(self) -> None:
        """Kills all that runs. The folder is removed behind it: a hostile one can take seconds."""
        self.ended = self.ended or "closed"
        self.kill()
        await self.ending

    def kill(self) -> None:
        """Kills all that runs, without waiting for the ends."""
        self.ended = self.ended or "killed"
        if not self.ending:
            self.writer.close()
            places.kill(self.place)
            self.ending = asyncio.ensure_future(places.has_ended(self.place))
            self.removal = asyncio.ensure_future(self._remove())
            REMOVALS.add(self.removal)
            self.removal.add_done_callback(REMOVALS.discard)

    async def _remove(self) -> None:
        await self.ending
        await asyncio.get_running_loop().run_in_executor(REMOVERS, self.tier.remove, self.place)


def batches(contents: dict[str, bytes]) -> Iterator[list[tuple[str, bool, bytes]]]:
    """Lists of (path, whether the piece follows another, bytes), of about `PIECE` bytes each."""
    pieces, size = [], 0
    for path, content in contents.items():
        for at in range(0, max(len(content), 1), PIECE):
            pieces.append((path, at > 0, bytes(content[at : at + PIECE])))
            size += len(pieces[-1][2])
            if size >= PIECE or len(pieces) >= 1000:
                yield pieces
                pieces, size = [], 0
    if pieces:
        yield pieces


def parsed_result(reply: bytes, cap: int) -> tuple[int, int, bool, bytes, bytes]:
    """The fields of what the program in a box says about a command; output beyond the cap is cut here too."""
    ending, code, dropped = (*reply[:3], 0, 0, 0)[:3]
    size = min(int.from_bytes(reply[3:7], "big"), len(reply))
    out, err = reply[7 : 7 + size], reply[7 + size :]
    return ending, code, bool(dropped) or max(len(out), len(err)) > cap, out[:cap], err[:cap]


def parsed_files(reply: bytes) -> dict[str, bytes]:
    """Files by path. Raises SandboxError for a malformed reply."""
    found, at = {}, 0
    while at < len(reply):
        size = int.from_bytes(reply[at : at + 4], "big")
        path, at = reply[at + 4 : at + 4 + size], at + 4 + size
        size = int.from_bytes(reply[at : at + 4], "big")
        found[os.fsdecode(path)], at = reply[at + 4 : at + 4 + size], at + 4 + size
    return found
