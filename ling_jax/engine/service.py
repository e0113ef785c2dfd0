"""An engine in a thread of its own, for callers of asyncio."""

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from ling_jax.engine.engine import Engine
from ling_jax.engine.request import Event, Id, Request
from ling_jax.messages import error_text

MAX_PENDING = 1024  # requests that wait or run; our choice
PAUSES = ("abort", "wait", "keep")

T = TypeVar("T")
Listen = Callable[[Event | BaseException], None]


class EngineService:
    """`async for event in service.generate(request)`: the engine's thread steps while there is work.

    A caller of `generate` waits while `max_pending` requests are in the engine, and a request whose caller goes away is
    released. Use as an async context manager, or call `close`. What breaks a step reaches every caller as RuntimeError
    and is the result of `ended`.
    """

    def __init__(self, engine: Engine, max_pending: int = MAX_PENDING):
        self._engine, self._room = engine, asyncio.Semaphore(max_pending)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[Id, Listen] = {}
        self._under_way: set[Id] = set()  # of turns that have not ended
        self._pause = ""  # of `PAUSES`; "": steps run
        self._deferred: dict[Id, Request] = {}  # requests that came during a pause
        self._idle: asyncio.Future | None = None  # set when no turn is under way, in a pause that waits for it
        self._error: BaseException | None = None
        self.ended: concurrent.futures.Future[BaseException] = concurrent.futures.Future()  # why the thread has ended
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

            ended = False
            try:
                await self._call(lambda: self._submit(request, listen))
                while not ended:
                    event = await events.get()
                    if isinstance(event, BaseException):
                        raise _ended(event) from event
                    ended = event.finish_reason is not None
                    yield event
            finally:
                if self._error is None:
                    self._calls.put(lambda: self._leave(request.id, listen))

    async def load(self, params: Any, version: int, in_flight: str = "recompute") -> None:
        """`Engine.load` between two steps, with its errors."""
        await self._call(lambda: self._engine.load(params, version, in_flight))

    async def read(self, function: Callable[[Engine], T]) -> T:
        """The result of a function of the engine, between two steps."""
        found: list[T] = []
        await self._call(lambda: found.append(function(self._engine)))
        return found[0]

    async def pause(self, mode: str) -> None:
        """No step runs after it until `resume`; requests that come meanwhile wait for that.

        Turns under way: "abort" ends them with an event of `cancelled`, "wait" lets them end first, "keep" leaves them
        where they are. Where the caller of "wait" is cancelled, steps run as before. Raises ValueError on another mode.
        """
        if mode not in PAUSES:
            raise ValueError(f"mode is {mode!r}; expected one of {', '.join(PAUSES)}")
        idle = asyncio.get_running_loop().create_future()
        try:
            await self._call(lambda: self._begin_pause(mode, idle))
            await idle
        except asyncio.CancelledError:
            self._calls.put(self._end_pause)
            raise

    async def resume(self) -> None:
        """Steps run again; does nothing where they do."""
        await self._call(self._end_pause)

    async def close(self) -> None:
        """Ends the thread; requests under way end with RuntimeError."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _call(self, function: Callable[[], None]) -> None:
        """Runs the function in the engine's thread and hands on what it raises."""
        done, loop = asyncio.get_running_loop().create_future(), asyncio.get_running_loop()

        def call() -> None:
            if self._error is not None:
                report(_ended(self._error))
                return
            try:
                function()
            except (ValueError, RuntimeError) as error:
                report(error)
            except BaseException as error:  # ends the thread
                report(_ended(error))
                raise
            else:
                report(None)

        def report(error: Exception | None) -> None:
            loop.call_soon_threadsafe(_settle_future, done, error)

        self._calls.put(call)
        if self._error is not None:  # the thread may have ended before it saw the call
            call()
        await done

    # In the engine's thread.

    def _serve(self) -> None:
        try:
            while self._take_calls():
                self._deliver(self._engine.step() if self._steps else ())
        except BaseException as error:  # whatever it is, the callers must not wait for ever
            self._end(error)
        else:
            self._end(RuntimeError("the service was closed"))

    @property
    def _steps(self) -> bool:
        """Whether the next step has something to do and may run."""
        waits = self._pause == "wait" and bool(self._under_way)
        return self._engine.busy and (not self._pause or waits)

    def _take_calls(self) -> bool:
        """Runs what callers asked for, and waits for it while no step runs; False: the service was closed."""
        while True:
            try:
                call = self._calls.get(block=not self._steps)
            except queue.Empty:
                return True
            if call is None:
                return False
            call()

    def _deliver(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.finish_reason is not None:
                self._under_way.discard(event.id)
            if event.id in self._listeners:
                self._listeners[event.id](event)
        self._settle()

    def _submit(self, request: Request, listen: Listen) -> None:
        if self._pause and (request.id in self._deferred or request.id in self._engine.ids):
            raise ValueError(f"request {request.id!r} is in the engine; release it first")
        if self._pause:
            self._deferred[request.id] = request
        else:
            self._start(request)
        self._listeners[request.id] = listen

    def _start(self, request: Request) -> None:
        self._engine.submit(request)
        self._under_way.add(request.id)

    def _leave(self, id: Id, listen: Listen) -> None:
        if self._listeners.get(id) is not listen:  # it was refused, because another request has this id
            return
        del self._listeners[id]
        self._deferred.pop(id, None)
        self._under_way.discard(id)
        if id in self._engine.ids:
            self._engine.release(id)
        self._settle()

    def _begin_pause(self, mode: str, idle: asyncio.Future) -> None:
        if self._pause:
            raise ValueError("the engine is paused; resume it first")
        self._pause, self._idle = mode, idle
        if mode == "abort":
            for id in self._under_way & self._engine.ids:
                self._engine.cancel(id)
            self._deliver(self._engine.step() if self._engine.busy else ())
        self._settle()

    def _settle(self) -> None:
        """Reports to the caller of `pause` that no step will run."""
        if not self._steps:
            self._report_idle(None)

    def _report_idle(self, error: Exception | None) -> None:
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.get_loop().call_soon_threadsafe(_settle_future, idle, error)

    def _end_pause(self) -> None:
        self._pause, self._idle = "", None
        deferred, self._deferred = self._deferred, {}
        for request in deferred.values():
            self._start(request)

    def _end(self, error: BaseException) -> None:
        self._error = error
        for listen in self._listeners.values():
            listen(error)
        self._report_idle(_ended(error))
        while not self._calls.empty():
            if (call := self._calls.get()) is not None:
                call()
        self.ended.set_result(error)


def _settle_future(future: asyncio.Future, error: Exception | None) -> None:
    if not future.done():  # its caller may have gone away
        future.set_result(None) if error is None else future.set_exception(error)


def _ended(error: BaseException) -> RuntimeError:
    return RuntimeError(f"the engine has ended: {error_text(error)}")
