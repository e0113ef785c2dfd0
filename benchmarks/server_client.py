"""A client that costs little: sends requests over plain sockets from many connections, and reads what comes.

python -m benchmarks.server_client < asked.json > answered.json

It runs in a process of its own, and parses nothing before all has come.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

CHUNK = 1 << 16


class Asked(NamedTuple):
    """A request, and after how many reads its client goes away; 0: never."""

    path: str
    body: str  # latin-1: each character is a byte
    reads: int = 0


class Answered(NamedTuple):
    """A response: its status (0 where none came), its body, and when its parts came."""

    status: int
    body: str
    first: float  # seconds to the first read behind the header
    token: float  # seconds to the first part of an answer: of a stream behind its first event
    seconds: float  # to the end


def ask_all(url: str, requests: Sequence[Asked], connections: int) -> tuple[list[Answered], float]:
    """(the answers in the order of the requests, seconds of all), from a process of its own."""
    asked = json.dumps({"url": url, "connections": connections, "requests": requests})
    command = [sys.executable, "-m", "benchmarks.server_client"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return [Answered(*answer) for answer in found["answers"]], found["seconds"]


async def _main(asked: dict[str, Any]) -> dict[str, Any]:
    address, places = urlsplit(asked["url"]), asyncio.Semaphore(asked["connections"])

    async def one(request: Asked):
        async with places:
            return await _ask(address.hostname, address.port, request)

    start = time.perf_counter()
    raw = await asyncio.gather(*(one(Asked(*request)) for request in asked["requests"]))
    seconds = time.perf_counter() - start
    return {"answers": [_parsed(*answer) for answer in raw], "seconds": seconds}


async def _ask(host: str, port: int, request: Asked) -> tuple[float, list[tuple[float, bytes]]]:
    """(start, [(time, bytes read)])."""
    body, start, reads = request.body.encode("latin-1"), time.perf_counter(), []
    head = f"POST {request.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while content := await reader.read(CHUNK):
            reads.append((time.perf_counter(), content))
            if len(reads) == request.reads:
                writer.transport.abort()
                break
    except ConnectionError:
        pass
    finally:
        writer.close()
    return start, reads


def _parsed(start: float, reads: list[tuple[float, bytes]]) -> Answered:
    whole = b"".join(content for _, content in reads)
    head, _, body = whole.partition(b"\r\n\r\n")
    if not head:
        return Answered(0, "", 0, 0, 0)
    if b"transfer-encoding: chunked" in head.lower():
        body = _unchunked(body)
    seen, times = 0, []
    for at, content in reads:
        seen += len(content)
        times += [at - start] * (seen > len(head) + 4)
    times = times or [reads[-1][0] - start]
    return Answered(int(head.split()[1]), body.decode(), times[0], times[min(1, len(times) - 1)], times[-1])


def _unchunked(body: bytes) -> bytes:
    """The content of HTTP's chunks; the last may be cut."""
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        parts.append(body[: int(size or b"0", 16)])
        body = body[len(parts[-1]) + 2 :]
    whole = b"".join(parts)
    return whole[: whole.rfind(b"\n\n") + 2] if whole.startswith(b"data: ") else whole


if __name__ == "__main__":
    json.dump(asyncio.run(_main(json.load(sys.stdin))), sys.stdout)
