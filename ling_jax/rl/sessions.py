"""Sessions of environments beside decoding: each in a thread of its own, with a deadline for all that it does."""

import asyncio
import concurrent.futures
import contextlib
import math
import numbers
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ling_jax.chat.template import check_messages
from ling_jax.data.json_lines import check_whole_characters
from ling_jax.envs import environment
from ling_jax.envs.base import Action, InfraError, Message, Session, StepResult, Task
from ling_jax.messages import error_text
from ling_jax.sandbox import SandboxError

SECONDS = 600.0  # for an `open` or a `step`; our choice: a test suite in a sandbox takes minutes
CLOSE_SECONDS = 10.0  # for a `close`, beside all else; our choice
EXIT_SECONDS = 1.0  # for all that is still open at the end; our choice: a signal ends a run in three
POLL_SECONDS = 1.0  # between two looks at deadlines
LOST = "its session was lost by a restart, and cannot be repeated"

Repeated = tuple[Action, Sequence[Message]]  # an action that was made before, and the observation that it had


class SessionResult(NamedTuple):
    """What came of an action."""

    id: int
    step: StepResult | None  # None where it failed
    status: str = ""  # "env_failed" or "infra_failed" where it failed
    error: str = ""


_Work = Coroutine[Any, Any, SessionResult | None]


class SessionHost:
    """All sessions that are open, by id.

    An instant session runs at once, in the caller's thread. Every other one has a daemon thread with an event loop, so
    one that blocks holds up nothing else, not even the end of the process. Each action has exactly one result, also
    where the session did not open. Not thread-safe.
    """

    def __init__(self, seconds: float = SECONDS):
        """`seconds` are the deadline of each `open` and each `step`, from the moment at which it starts."""
        self.seconds = seconds
        self._sessions: dict[int, _Instant | _Threaded | _Broken] = {}
        self._finished: list[tuple[_Threaded, SessionResult]] = []  # by threads, under the condition's lock
        self._changed = threading.Condition()
        self._reapers: list[threading.Thread] = []

    def __enter__(self) -> "SessionHost":
        return self

    def __exit__(self, *_) -> None:
        self.close_all()

    def __contains__(self, id: int) -> bool:
        """Whether there is a session of this id."""
        return id in self._sessions

    def open(
        self,
        id: int,
        make: Callable[[], Session],
        task: Task,
        seed: int,
        repeated: Sequence[Repeated] = (),
        *,
        begun: bool = False,
    ) -> None:
        """Makes and opens a session, and repeats actions, whose observations must be those that they had before.

        `begun` says that an earlier session, which is no more, was given actions; one that cannot be repeated is lost
        then. Where any of this fails, the result of the next action says so.
        """
        live = self._sessions[id] = self._make(id, make, begun)
        if isinstance(live, _Broken):
            return
        live.do(_open(id, live.session, task, seed))
        for action, observation in repeated:
            live.do(_repeat(id, live.session, action, observation))

    def act(self, id: int, action: Action) -> SessionResult | None:
        """The result of an instant session; `results` gives that of another one, when it has come."""
        return self._sessions[id].act(action)

    def results(self, wait_seconds: float = 0.0) -> list[SessionResult]:
        """What has come since the last call, sorted by id; waits that long for the first one."""
        until = time.monotonic() + wait_seconds
        with self._changed:
            while True:
                found = self._take_finished() + self._take_late()
                left = until - time.monotonic()
                if found or left <= 0:
                    return sorted(found, key=lambda result: result.id)
                self._changed.wait(min(left, POLL_SECONDS, max(0.0, self._next_deadline())))

    def move(self, id: int, other: "SessionHost") -> None:
        """A session is another host's from now on, with what it does and has done. Neither may be in use meanwhile."""
        live = other._sessions[id] = self._sessions.pop(id)
        if isinstance(live, _Threaded):
            live.report_to(other)

    def close(self, id: int) -> None:
        """Closes a session; one that is not instant in the background, where what it does is cancelled."""
        live = self._sessions.pop(id)
        self._reapers = [thread for thread in self._reapers if thread.is_alive()] + live.close()

    def close_all(self) -> None:
        """Closes all sessions, and waits a little for them."""
        for id in sorted(self._sessions):
            self.close(id)
        until = time.monotonic() + EXIT_SECONDS
        for thread in self._reapers:
            thread.join(max(0.0, until - time.monotonic()))

    def _make(self, id: int, make: Callable[[], Session], begun: bool) -> "_Instant | _Threaded | _Broken":
        try:
            session = make()
            if begun and not session.replayable:
                return _Broken(SessionResult(id, None, "infra_failed", LOST))
            return _Instant(id, session) if getattr(session, "instant", False) else _Threaded(id, session, self)
        except Exception as error:  # of the maker, or a limit of threads or open files
            return _Broken(SessionResult(id, None, "infra_failed", _opening(error)))

    def _add(self, live: "_Threaded", result: SessionResult) -> None:
        with self._changed:
            self._finished.append((live, result))
            self._changed.notify()

    def _take_of(self, live: "_Threaded") -> list[SessionResult]:
        with self._changed:
            found = [result for of, result in self._finished if of is live]
            self._finished = [pair for pair in self._finished if pair[0] is not live]
        return found

    def _take_finished(self) -> list[SessionResult]:
        finished, self._finished = self._finished, []
        return [result for live, result in finished if self._sessions.get(result.id) is live]

    def _take_late(self) -> list[SessionResult]:
        late = [live for live in self._owing() if live.seconds_left(self.seconds) <= 0 and live.take()]
        error = f"its session gave no answer in {self.seconds:g} s"
        return [SessionResult(live.id, None, "infra_failed", error) for live in late]

    def _next_deadline(self) -> float:
        return min((live.seconds_left(self.seconds) for live in self._owing()), default=math.inf)

    def _owing(self) -> list["_Threaded"]:
        return [live for live in self._sessions.values() if isinstance(live, _Threaded) and live.owes]


@contextlib.contextmanager
def open_session(task: Task, seed: int = 0, seconds: float = SECONDS) -> Iterator[Callable[[Action], StepResult]]:
    """A session of a task's environment, as a function that acts in it and waits `seconds` at most for the result.

    The function raises InfraError, which names the task, where the session fails.
    """
    with SessionHost(seconds) as host:
        host.open(0, environment(task.environment).session, task, seed)

        def act(action: Action) -> StepResult:
            result = host.act(0, action)
            while result is None:
                result = next(iter(host.results(POLL_SECONDS)), None)
            if result.step is None:
                raise InfraError(f"task {task.id} of {task.environment}: {result.error}")
            return result.step

        yield act


class _Instant:
    """A session in its caller's thread."""

    def __init__(self, id: int, session: Session):
        self.id, self.session = id, session
        self._failure: SessionResult | None = None

    def do(self, work: _Work) -> SessionResult | None:
        if self._failure is not None:
            work.close()
            return self._failure
        result = _finish_now(self.id, work)
        if result is not None and result.step is None:
            self._failure = result
        return result

    def act(self, action: Action) -> SessionResult | None:
        return self.do(_step(self.id, self.session, action))

    def close(self) -> list[threading.Thread]:
        try:
            if waits := _finish_now(self.id, _close(self.id, self.session)):
                print(f"rollout {self.id}: {waits.error}", flush=True)
        except asyncio.CancelledError as error:
            _print_unclosed(self.id, error)
        return []


class _Broken(NamedTuple):
    """What is there instead of a session that could not be made."""

    failure: SessionResult

    def act(self, action: Action) -> SessionResult:
        del action
        return self.failure

    def close(self) -> list[threading.Thread]:
        return []


class _Threaded:
    """A session in a thread with an event loop. What it is to do is done in order; after a failure, nothing is."""

    def __init__(self, id: int, session: Session, host: SessionHost):
        self.id, self.session, self._host = id, session, host
        self._reporting = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_DaemonThreads())
        self._in_order = asyncio.Lock()
        self._doing: set[asyncio.Task] = set()  # what it is to do; tasks that the session itself started are not here
        self._started = math.inf  # when what it does now began; inf where it does nothing
        self._settled = threading.Lock()  # released while an action has no result yet
        self._settled.acquire()
        self._unclosed = threading.Semaphore(1)  # who takes it closes the session
        self._failure: SessionResult | None = None
        _start(self._serve)

    def do(self, work: _Work) -> None:
        asyncio.run_coroutine_threadsafe(self._do(work), self._loop)

    def act(self, action: Action) -> None:
        self._settled.release()
        self.do(_step(self.id, self.session, action))

    def seconds_left(self, seconds: float) -> float:
        """Until the deadline of what it does now."""
        return self._started + seconds - time.monotonic()

    @property
    def owes(self) -> bool:
        """Whether an action has no result yet."""
        return not self._settled.locked()

    def take(self) -> bool:
        """Whether an action has no result yet; from now on it counts as having one."""
        return self._settled.acquire(blocking=False)

    def report_to(self, host: SessionHost) -> None:
        """Results go to this host, also those that the other one has not given out."""
        with self._reporting:
            found, self._host = self._host._take_of(self), host
            for result in found:
                host._add(self, result)

    def close(self) -> list[threading.Thread]:
        self.take()
        return [_start(self._reap)]

    def _reap(self) -> None:
        """Closes the session in its own thread, or in this one where that is blocked."""
        closing = asyncio.run_coroutine_threadsafe(self._cancel_and_close(), self._loop)
        try:
            closing.result(CLOSE_SECONDS)
        except TimeoutError:
            asyncio.run(self._close_once())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _do(self, work: _Work) -> None:
        self._doing.add(asyncio.current_task())
        try:
            async with self._in_order:
                self._started = time.monotonic()
                result = self._failure or await work
                self._started = math.inf
        finally:
            work.close()  # where it did not run
            self._doing.remove(asyncio.current_task())
        if result is None:  # it opened, or repeated an action
            return
        if result.step is None:
            self._failure = result
        if self.take():
            with self._reporting:
                self._host._add(self, result)

    async def _cancel_and_close(self) -> None:
        """The session's own tasks run on until it has closed: it may need them to end well."""
        await _cancel(self._doing)
        await self._close_once()
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()})

    async def _close_once(self) -> None:
        if self._unclosed.acquire(blocking=False):
            try:
                await asyncio.wait_for(_close(self.id, self.session), CLOSE_SECONDS)
            except TimeoutError:
                print(f"rollout {self.id}: its session did not close in {CLOSE_SECONDS:g} s", flush=True)
            except asyncio.CancelledError as error:  # it awaited a task that it cancelled
                _print_unclosed(self.id, error)


async def _open(id: int, session: Session, task: Task, seed: int) -> SessionResult | None:
    """None, or why the session did not open."""
    try:
        await session.open(task, seed)
    except (Exception, SystemExit, asyncio.CancelledError) as error:
        return SessionResult(id, None, "infra_failed", _opening(error))
    return None


async def _step(id: int, session: Session, action: Action) -> SessionResult:
    try:
        step = await session.step(action)
    except (InfraError, SandboxError) as error:
        return SessionResult(id, None, "infra_failed", error_text(error))
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # it says nothing about the policy
        return SessionResult(id, None, "env_failed", error_text(error))
    if problem := _problem(step):
        return SessionResult(id, None, "env_failed", problem)
    return SessionResult(id, step)


async def _repeat(id: int, session: Session, action: Action, observation: Sequence[Message]) -> SessionResult | None:
    """None, or that an action has not the observation that it had before."""
    result = await _step(id, session, action)
    if result.step is not None and list(result.step.observation) == list(observation):
        return None
    found = result.error or "another observation"
    return SessionResult(id, None, "infra_failed", f"its session could not repeat an action: {found}")


async def _close(id: int, session: Session) -> None:
    try:
        await session.close()
    except (Exception, SystemExit) as error:
        _print_unclosed(id, error)


def _print_unclosed(id: int, error: BaseException) -> None:
    print(f"rollout {id}: its session did not close: {error_text(error)}", flush=True)


async def _cancel(tasks: Collection[asyncio.Task]) -> None:
    """Cancels them, and waits a second for their ends."""
    tasks = set(tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)


def _finish_now(id: int, work: _Work) -> SessionResult | None:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    return SessionResult(id, None, "env_failed", "its session says that it is instant, and waits: remove `instant`")


def _problem(step: Any) -> str:
    """What is wrong with what a session returned; "" where nothing is."""
    if not isinstance(step, StepResult):
        return f"its session returned a {type(step).__name__}; expected a StepResult"
    for name in ("terminated", "truncated"):
        if not isinstance(getattr(step, name), bool | np.bool_):
            return f"{name} is {getattr(step, name)!r}; expected True or False"
    if not isinstance(step.rewards, Mapping):
        return f"rewards is a {type(step.rewards).__name__}; expected {{name: number}}"
    if problem := _problem_of_rewards(step):
        return problem
    try:
        if step.observation:
            check_messages(list(step.observation), "observation")
        for i, message in enumerate(step.observation):
            if message["role"] == "assistant":
                return f"observation[{i}].role is 'assistant'; only the policy speaks as it"
            check_whole_characters(message["content"], f"observation[{i}].content")
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def _problem_of_rewards(step: StepResult) -> str:
    for name, reward in step.rewards.items():
        if not isinstance(name, str) or not isinstance(reward, numbers.Real) or not math.isfinite(reward):
            return f"rewards[{name!r}] is {reward!r}; expected a finite number by its name"
    if step.terminated and "outcome" not in step.rewards:
        return "rewards has no 'outcome', and the episode has ended; expected 1 for solved, 0 for not"
    if not 0 <= step.rewards.get("outcome", 0) <= 1:
        return f"rewards['outcome'] is {step.rewards['outcome']!r}; expected a number from 0 to 1"
    return ""


def _opening(error: BaseException) -> str:
    return f"its session did not open: {error_text(error)}"


def _start(target: Callable[[], None]) -> threading.Thread:
    """A thread that does not hold up the end of the process."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


class _DaemonThreads(concurrent.futures.ThreadPoolExecutor):
    """What `asyncio.to_thread` of a session runs in: threads that do not hold up the end of the process."""

    def submit(self, fn, /, *args, **kwargs):
        """Runs it in a new thread."""
        future: concurrent.futures.Future = concurrent.futures.Future()

        def work():
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        _start(work)
        return future
