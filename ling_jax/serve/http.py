"""What lies between sockets and handlers: bodies, keys, limits, streams that notice a client's end."""

import asyncio
import contextlib
import dataclasses
import hmac
import io
import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ling_jax.serve.errors import ApiError

T = TypeVar("T")
PROXIES = ("forwarded", "x-forwarded-", "x-real-ip", "via")  # how headers begin that a proxy adds
DRAINED = 4  # times the limit of a body that is read and dropped, so that the client sees the answer; our choice


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of what a client may take. All are our choice."""

    body_bytes: int = 4 << 20  # a context of 256K tokens, as text or as ids
    choices: int = 512  # answers under way and waiting, of all requests
    sessions: int = 256  # that are recorded
    seconds: float = 600.0  # from a request to the end of its answer
    body_seconds: float = 30.0  # for the body to come
    stall_seconds: float = 30.0  # that a client may leave a part of its answer unread


@dataclasses.dataclass(frozen=True)
class Keys:
    """Who may ask: "" asks for no key. Without an admin key, admin calls come from this machine alone."""

    api: str = ""
    admin: str = ""


def check_key(request: Request, keys: Keys) -> None:
    """Raises ApiError 401 where the request lacks the key of the server, or the admin's."""
    if keys.api and not (_is_key(request, keys.api) or (keys.admin and _is_key(request, keys.admin))):
        raise ApiError(401, "the header Authorization has no valid key: Bearer KEY", code="invalid_api_key")


def check_admin(request: Request, keys: Keys) -> None:
    """Raises ApiError 401 or 403 where the request may not change the server."""
    if keys.admin:
        if not _is_key(request, keys.admin):
            raise ApiError(401, "the header Authorization has no admin key: Bearer KEY", code="invalid_api_key")
        return
    check_key(request, keys)
    host = request.url.hostname or ""  # of the header Host: a web page's request has its own name there
    if (
        request.client is None
        or not _is_loopback(request.client.host)
        or not (host == "localhost" or _is_loopback(host))
        or any(name.startswith(PROXIES) for name in request.headers)
    ):
        raise ApiError(
            403, "admin calls come from this machine, to 127.0.0.1, through no proxy; elsewhere start with an admin key"
        )


def session_name(request: Request) -> str | None:
    """The session that a call belongs to, by its address or the header X-Session; None where neither names one.

    Raises ApiError 400 where they name two.
    """
    headers, path = request.headers.getlist("x-session"), request.path_params.get("session")
    names = list(dict.fromkeys([*headers, *([] if path is None else [path])]))
    if len(names) > 1:
        found = " and ".join(repr(name[:200]) for name in names[:3])
        raise ApiError(400, f"the address and headers X-Session name {len(names)} sessions: {found}", "session")
    return names[0] if names else None


def _is_key(request: Request, key: str) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def body_of(request: Request, limits: Limits) -> bytes:
    """The body. Raises ApiError: 415 on another type than JSON, 413 on a large one, 408 on a slow one."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the header Content-Type is not application/json")
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await _read(request, limits.body_bytes)
    except TimeoutError:
        raise ApiError(408, f"the body took more than {limits.body_seconds:g} s", code="timeout") from None


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            parts.append(part)
        elif size > DRAINED * limit:
            break
    if size > limit:
        raise ApiError(413, f"the body has more than {limit} bytes; send less, or start the server with more")
    return b"".join(parts)


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None, *, pieces: bool = False
) -> Response:
    """A response of JSON; characters that JSON cannot hold as UTF-8 are escaped.

    Written in `pieces`, a large one leaves other threads their turn.
    """
    encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = _in_pieces(encoder, content) if pieces else encoder.encode(content)
    body = text.encode("utf-8", "backslashreplace")
    return Response(body, status, headers=headers, media_type="application/json")


def _in_pieces(encoder: json.JSONEncoder, content: Any) -> str:
    text = io.StringIO()  # a list of all pieces would take ten times the memory
    for piece in encoder.iterencode(content):
        text.write(piece)
    return text.getvalue()


def error_response(error: ApiError) -> Response:
    """The response of an error."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
    return json_response(error.body(), error.status, headers.get(error.status))


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of the work, which is cancelled where the client goes away. Raises ClientDisconnect there."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. The iterator ends where the client goes away, or leaves what it gets unread for too long."""

    def __init__(self, events: AsyncIterator[bytes], stall_seconds: float, ended: Any):
        self._events, self._stall_seconds, self._ended = events, stall_seconds, ended
        self.status_code, self.background = 200, None
        self.media_type = "text/event-stream"
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        writing, gone = asyncio.ensure_future(self._write(send)), asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((writing, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            whole = writing.done() and not writing.cancelled() and writing.exception() is None
            gone.cancel()
            writing.cancel()
            await asyncio.gather(writing, gone, return_exceptions=True)
            self._ended(whole)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                async with asyncio.timeout(self._stall_seconds):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
