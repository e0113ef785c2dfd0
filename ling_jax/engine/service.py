"""An engine in a thread of its own, for callers of asyncio."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from ling_jax.engine.engine import Engine
from ling_jax.engine.request import Event, Id, Request

MAX_PENDING = 1024  # requests that wait or run; our choice


class EngineService:
    """`async for event in service.generate(request)`: the engine's thread steps while there is work.

    A caller of `generate` waits while `max_pending` requests are in the engine, and a request whose caller goes away is
    released. Use as an async context manager, or call `close`. What breaks a step reaches every caller as RuntimeError.
    """

    def __init__(self, engine: Engine, max_pending: int = MAX_PENDING):
        self._engine, self._room = engine, asyncio.Semaphore(max_pending)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[Id, Callable[[Event | BaseException], None]] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> "EngineService":
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        """The request's events until its turn has ended; it is then released.

        Raises ValueError where the engine has a request of this id, RuntimeError where the service has ended.
        """
        async with self._room:
            events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def listen(event: Event | BaseException) -> None:
                loop.call_soon_threadsafe(events.put_nowait, event)

            await self._call(lambda: self._submit(request, listen))
            ended = False
            try:
                while not ended:
                    event = await events.get()
                    if isinstance(event, BaseException):
                        raise RuntimeError(f"the engine has ended: {type(event).__name__}: {event}") from event
                    ended = event.finish_reason is not None
                    yield event
            finally:
                if self._error is None:
                    self._calls.put(lambda: self._leave(request.id))

    async def load(self, params: Any, version: int, in_flight: str = "recompute") -> None:
        """`Engine.load` between two steps, with its errors."""
        await self._call(lambda: self._engine.load(params, version, in_flight))

    async def close(self) -> None:
        """Ends the thread; requests under way end with RuntimeError."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _call(self, function: Callable[[], None]) -> None:
        """Runs the function in the engine's thread and hands on what it raises."""
        done, loop = asyncio.get_running_loop().create_future(), asyncio.get_running_loop()

        def set_result(error: Exception | None) -> None:
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)

        def call() -> None:
            error = self._error
            try:
                if error is None:
                    function()
            except (ValueError, RuntimeError) as raised:
                error = raised
            loop.call_soon_threadsafe(set_result, None if error is None else as_raised(error))

        def as_raised(error: BaseException) -> Exception:
            ended = RuntimeError(f"the engine has ended: {type(error).__name__}: {error}")
            return ended if error is self._error else error

        self._calls.put(call)
        if self._error is not None:  # the thread may have ended before it saw the call
            call()
        await done

    # In the engine's thread.

    def _serve(self) -> None:
        try:
            while self._take_calls():
                for event in self._engine.step() if self._engine.busy else ():
                    if event.id in self._listeners:
                        self._listeners[event.id](event)
        except BaseException as error:  # whatever it is, the callers must not wait for ever
            self._end(error)
        else:
            self._end(RuntimeError("the service was closed"))

    def _take_calls(self) -> bool:
        """Runs what callers asked for, and waits for it while the engine is idle; False: the service was closed."""
        while True:
            try:
                call = self._calls.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if call is None:
                return False
            call()

    def _submit(self, request: Request, listen: Callable[[Event | BaseException], None]) -> None:
        self._engine.submit(request)
        self._listeners[request.id] = listen

    def _leave(self, id: Id) -> None:
        self._listeners.pop(id, None)
        if id in self._engine.ids:
            self._engine.release(id)

    def _end(self, error: BaseException) -> None:
        self._error = error
        for listen in self._listeners.values():
            listen(error)
        while not self._calls.empty():
            if (call := self._calls.get()) is not None:
                call()
