"""The endpoints (docs/serving.md)."""

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.engine.engine import Engine
from ling_jax.engine.service import EngineService
from ling_jax.rl.trajectory import BRANCHES, SAMPLES
from ling_jax.serve import protocol
from ling_jax.serve.asked import Asked, Served, asked_chat, asked_completion, asked_tokens, check_model, tokenizer_info
from ling_jax.serve.choice import ChatChoice, Choice, Delta
from ling_jax.serve.errors import ApiError
from ling_jax.serve.generation import deltas_of
from ling_jax.serve.http import (
    EventStream,
    Keys,
    Limits,
    body_of,
    check_admin,
    check_key,
    error_response,
    json_response,
    session_name,
    unless_gone,
)
from ling_jax.serve.metrics import Metrics
from ling_jax.serve.openapi import description
from ling_jax.serve.recorded import Session, Sessions, exported, listed
from ling_jax.serve.static import page_files, page_response
from ling_jax.serve.weights import WeightUpdates
from ling_jax.serve.writers import ChatWriter, CompletionWriter, Writer

COMPARED = "/compare"  # below this path a second model has the same endpoints
GONE = 499  # the client went away; nobody reads the status
Handler = Callable[[Any], Awaitable[Any]]


class Server:
    """The state behind the endpoints: one engine, its service, what is counted.

    `compared` is the server of a second model, which the page shows beside this one.
    """

    def __init__(
        self,
        engine: Engine,
        served: Served,
        limits: Limits,
        keys: Keys,
        compared: "Server | None" = None,
        sessions: Sessions | None = None,
    ):
        self.engine, self.served, self.limits, self.keys = engine, served, limits, keys
        self.compared = compared
        self.sessions = sessions or Sessions(limits.sessions)
        self.service = EngineService(engine, max_pending=sys.maxsize)  # `limits.choices` bounds them
        self.weights = WeightUpdates(self.service, engine, tokenizer_digest(served.tokenizer))
        self.metrics, self.started = Metrics(), int(time.time())
        self.pending = 0  # choices that wait or run

    def app(self) -> Starlette:
        """The ASGI application."""
        weights, posts = self.weights, protocol
        routes = [
            *(self._page(path, *file) for path, file in page_files().items()),
            self._get("/health", self.health, open_=True),
            self._get("/metrics", self.prometheus, open_=True),
            self._get("/openapi.json", self.openapi, open_=True),
            self._get("/v1/sessions", self.list_sessions, admin=True),
            self._get("/v1/sessions/{name}", self.export_session, admin=True),
            self._get("/v1/sessions/{name}", self.end_session, admin=True, method="DELETE"),
            *self._answering("/v1"),
            *self._answering("/sessions/{session}/v1"),
            self._post("/tokenize", posts.TokenizeBody, self.tokenize),
            self._get("/tokenizer_info", self.tokenizer_info),
            self._post("/detokenize", posts.DetokenizeBody, self.detokenize),
            self._post("/v1/weights/init", posts.InitBody, weights.init, admin=True),
            self._post("/v1/weights/start", posts.StartBody, weights.start, admin=True),
            self._post("/v1/weights/update", posts.UpdateBody, weights.update, admin=True),
            self._post("/v1/weights/finish", posts.FinishBody, weights.finish, admin=True),
            self._post("/v1/weights/abandon", posts.EmptyBody, lambda body: weights.abandon(), admin=True),
        ]
        mounts = [Mount(COMPARED, self.compared.app())] if self.compared else []
        return Starlette(routes=[*routes, *mounts], exception_handlers={HTTPException: _http_error})

    def _answering(self, prefix: str) -> list[Route]:
        """What a client of OpenAI's protocol asks, below an address."""
        return [
            self._get(f"{prefix}/models", self.models),
            self._get(f"{prefix}/models/{{name:path}}", self.models),
            self._post(f"{prefix}/completions", protocol.CompletionBody, self.complete),
            self._post(f"{prefix}/chat/completions", protocol.ChatBody, self.chat),
        ]

    # Endpoints.

    async def health(self, request: Request) -> Response:
        """200 with the version of the weights, 503 where the engine has ended."""
        if self.service.ended.done():
            return error_response(ApiError(503, "the engine has ended", code="engine_ended"))
        about = {"status": "ok", "weight_version": self.engine.version, "paused": self.weights.paused}
        about |= {"pending": self.pending, "slots_in_use": self.engine.slots_in_use}
        return json_response(about | {"compared": self.compared is not None})

    async def prometheus(self, request: Request) -> Response:
        """Prometheus' text format."""
        gauges = {
            "slots": ("Requests that the engine draws for at a time.", self.engine.plan.slots),
            "slots_in_use": ("Slots with a request.", self.engine.slots_in_use),
            "pending": ("Answers that wait or are under way.", self.pending),
            "weight_version": ("Version of the weights.", self.engine.version),
            "paused": ("1 during an update of weights.", float(self.weights.paused)),
            "steps": ("Steps of the engine so far.", self.engine.steps),
        }
        return PlainTextResponse(self.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI description."""
        return json_response(description())

    async def models(self, request: Request) -> Response:
        """The one model, in a list or by its name."""
        model = {"id": self.served.name, "object": "model", "created": self.started, "owned_by": "ling_jax"}
        model |= {"max_model_len": self.served.max_tokens}
        if (name := request.path_params.get("name")) is not None:
            check_model(self.served, name)
            return json_response(model)
        return json_response({"object": "list", "data": [model]})

    async def complete(self, request: Request, body: protocol.CompletionBody) -> Response:
        """Completions of plain text."""
        return await self._asked(request, body, "cmpl", asked_completion, Choice, CompletionWriter)

    async def chat(self, request: Request, body: protocol.ChatBody) -> Response:
        """Chat completions."""
        return await self._asked(request, body, "chatcmpl", asked_chat, ChatChoice, ChatWriter)

    async def list_sessions(self, request: Request) -> Response:
        """The recorded sessions."""
        return await asyncio.to_thread(lambda: json_response({"sessions": [listed(found) for found in self.sessions]}))

    async def export_session(self, request: Request) -> Response:
        """The samples of a session."""
        session, asked = self.sessions.find(request.path_params["name"]), request.query_params
        choice = asked.get("samples", SAMPLES[0]), asked.get("branches", BRANCHES[0])
        return await asyncio.to_thread(lambda: json_response(exported(session, *choice), pieces=True))

    async def end_session(self, request: Request) -> Response:
        """Forgets a session."""
        name = request.path_params["name"]
        self.sessions.remove(name)
        return json_response({"name": name, "deleted": True})

    async def tokenize(self, request: Request, body: protocol.TokenizeBody) -> Response:
        """Token ids of a text or of a conversation."""
        tokens = await asyncio.to_thread(asked_tokens, self.served, body)
        return json_response({"tokens": tokens, "count": len(tokens), "max_model_len": self.served.max_tokens})

    async def tokenizer_info(self, request: Request) -> Response:
        """What a client needs beside `/tokenize`: the end token and the chat template."""
        return json_response(tokenizer_info(self.served))

    async def detokenize(self, request: Request, body: protocol.DetokenizeBody) -> Response:
        """The text of token ids."""
        check_model(self.served, body.model)
        for i, token in enumerate(body.tokens):
            if token >= self.served.vocab_size:
                message = f"tokens[{i}] is {token}; the vocabulary has {self.served.vocab_size}"
                raise ApiError(400, message, f"tokens[{i}]")
        text = self.served.tokenizer.decode(body.tokens, skip_special_tokens=False)
        return json_response({"prompt": text})

    # Answers.

    async def _asked(
        self,
        request: Request,
        body: Any,
        name: str,
        reads: Callable[..., Asked],
        kind: type[Choice],
        writes: type[Writer],
    ) -> Response:
        """Reads what a body asks, beside the other requests, and answers it."""
        id, session = f"{name}-{uuid.uuid4().hex}", self.sessions.of(session_name(request))
        asked = await asyncio.to_thread(reads, self.served, body, id, session and session.earlier())
        return await self._answer(request, asked, kind, writes(self.served, asked, id), session)

    async def _answer(
        self, request: Request, asked: Asked, kind: type[Choice], writer: Writer, session: Session | None
    ) -> Response:
        self._check_queue(len(asked.requests))
        if session is not None:
            kept = self.sessions.keep(session)
            if kept is not session:  # another call stored it meanwhile, and had not ended when this one came
                session, asked = kept, dataclasses.replace(asked, known=0)
            asked = session.begin(asked)
        choices = [kind(self.served, asked, i) for i in range(len(asked.requests))]
        place = _Place(self, asked, session)
        if asked.stream:
            return EventStream(self._events(choices, writer, session), self.limits.stall_seconds, place.leave)
        whole = False
        try:
            async with asyncio.timeout(self.limits.seconds):
                await unless_gone(request, self._collect(choices, session))
            whole = True
            return json_response(writer.whole(choices))
        except TimeoutError:
            raise self._late() from None
        finally:
            place.leave(whole)

    def _check_queue(self, count: int) -> None:
        if self.service.ended.done():
            raise ApiError(503, "the engine has ended", code="engine_ended")
        if self.pending + count > self.limits.choices:
            message = f"{self.pending} answers are under way, of at most {self.limits.choices}; try again later"
            raise ApiError(429, message, code="queue_full")

    async def _collect(self, choices: list[Choice], session: Session | None) -> None:
        async with contextlib.aclosing(self._deltas(choices, session)) as deltas:
            async for _ in deltas:
                pass

    async def _events(self, choices: list[Choice], writer: Writer, session: Session | None) -> AsyncIterator[bytes]:
        """The events of a stream; an error is its last event."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                for chunk in writer.first(choices):
                    yield _event(chunk)
                async with contextlib.aclosing(self._deltas(choices, session)) as deltas:
                    async for choice, delta in deltas:
                        if chunks := writer.chunks(choice, delta):
                            yield b"".join(map(_event, chunks))
                if writer.asked.include_usage:
                    yield _event(writer.usage_chunk(choices))
        except TimeoutError:
            yield _event(self._late().body())
        except ApiError as error:
            yield _event(error.body())
        except Exception as error:
            yield _event(_failure(error).body())
        yield b"data: [DONE]\n\n"

    def _late(self) -> ApiError:
        return ApiError(408, f"the answer took more than {self.limits.seconds:g} s", code="timeout")

    async def _deltas(self, choices: list[Choice], session: Session | None) -> AsyncIterator[tuple[Choice, Delta]]:
        """`deltas_of`, counted, and recorded in the session. Choices keep their deltas where these are used again."""
        start, last = time.monotonic(), dict[int, float]()
        metrics, asked = self.metrics, choices[0].asked
        metrics.prompt_tokens += sum(len(choice.request.tokens) for choice in choices[:: asked.n])
        try:
            async with contextlib.aclosing(deltas_of(self.service, choices)) as deltas:
                async for choice, delta in deltas:
                    if session is not None or not asked.stream:
                        choice.deltas.append(delta)
                    if session is not None:
                        session.note(choice, delta)
                    if delta.tokens:
                        self._count(choice, delta, start, last)
                    yield choice, delta
        finally:
            if session is not None:
                session.leave(choices)
        metrics.cached_tokens += sum(choice.cached for choice in choices)
        metrics.whole.observe(time.monotonic() - start)

    def _count(self, choice: Choice, delta: Delta, start: float, last: dict[int, float]) -> None:
        """Counts an event with tokens; `last` has the time of each choice's event before."""
        now, before = time.monotonic(), last.get(choice.number)
        if before is None:
            self.metrics.first_token.observe(now - start)
        else:
            self.metrics.between_tokens.observe((now - before) / len(delta.tokens))
        last[choice.number] = now
        self.metrics.generated_tokens += len(delta.tokens)

    # Routes.

    def _get(
        self, path: str, handler: Handler, *, open_: bool = False, admin: bool = False, method: str = "GET"
    ) -> Route:
        async def endpoint(request: Request) -> Response:
            if not open_:
                (check_admin if admin else check_key)(request, self.keys)
            return await handler(request)

        return Route(path, self._guarded(path, endpoint), methods=[method])

    def _page(self, path: str, content: bytes, media_type: str) -> Route:
        async def file(request: Request) -> Response:
            return page_response(content, media_type)

        return self._get(path, file, open_=True)

    def _post(self, path: str, kind: type[protocol.Body], handler: Handler, *, admin: bool = False) -> Route:
        async def endpoint(request: Request) -> Response:
            (check_admin if admin else check_key)(request, self.keys)
            body = protocol.read_body(kind, await body_of(request, self.limits))
            return json_response(await handler(body)) if admin else await handler(request, body)

        return Route(path, self._guarded(path, endpoint), methods=["POST"])

    def _guarded(self, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Any:
        """The endpoint with its errors as responses, counted by status."""

        async def guarded(request: Request) -> Response:
            try:
                response = await endpoint(request)
            except ApiError as error:
                response = error_response(error)
            except ClientDisconnect:
                response = Response(status_code=GONE)
            except Exception as error:
                response = error_response(_failure(error))
            self.metrics.responses[path, response.status_code] += 1
            return response

        return guarded


class _Place:
    """A request's place among those that the server takes at a time."""

    def __init__(self, server: Server, asked: Asked, session: Session | None):
        self._server, self._count, self._session = server, len(asked.requests), session
        server.pending += self._count
        self._move(self._count)

    def leave(self, whole: bool) -> None:
        """Gives the place back, once; `whole`: the client got its answer."""
        self._server.pending -= self._count
        self._move(-self._count)
        self._count = 0
        self._server.metrics.disconnects += not whole

    def _move(self, count: int) -> None:
        if self._session is not None:
            self._server.sessions.move(self._session, count)


def _failure(error: Exception) -> ApiError:
    """The 500 of a mistake in the server, whose place is logged; its message may have the words of a request."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    print(f"error: {type(error).__name__} in {place.filename}:{place.lineno}", file=sys.stderr, flush=True)
    return ApiError(500, "the server has failed; its log says where")


def _event(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b"data: " + text.encode("utf-8", "backslashreplace") + b"\n\n"


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: f"there is no {request.url.path}", 405: f"{request.url.path} is not for {request.method}"}
    return error_response(ApiError(error.status_code, words.get(error.status_code, str(error.detail))))
