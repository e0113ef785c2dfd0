"""Several processes that train one model: they join, wait for each other, stop at the same step and end together.

A process is called a host here, although several may share a machine. The hosts communicate through JAX's coordination
service, which host 0 runs. In a process that is alone these functions do nothing.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
from jax._src.distributed import global_state  # the coordination service has no public name

from ling_jax.distributed.peers import all_peers
from ling_jax.distributed.rendezvous import ProcessInfo, differences, listening_addresses, own_name, rendezvous
from ling_jax.files import parse_object
from ling_jax.messages import print_last

POLLS = 20  # of the watch in a time-out: a host without a new heartbeat in this many is lost
BACKSTOP = 3  # time-outs until JAX's own heartbeats end all processes without naming the lost one
DONE = "done"
EXIT_HUNG = 75  # EX_TEMPFAIL of sysexits.h: a step did not end, and the same command may continue
Result = TypeVar("Result")


@dataclasses.dataclass
class _Hosts:
    names: tuple[str, ...]
    seconds: float  # the time-out
    polls: int = 0  # of the watch so far
    leaving: threading.Event = dataclasses.field(default_factory=threading.Event)
    exchanges: itertools.count = dataclasses.field(default_factory=itertools.count)


_joined: list[_Hosts] = []  # one or none: JAX's service is joined once
_handlers: list[Any] = []  # C functions, which nothing else keeps alive
_write_stacks: list[Callable[[], None]] = []  # one or none


def is_multiprocess() -> bool:
    """Whether this process has joined others."""
    return bool(_joined)


def process_index() -> int:
    """The number of this host; known before devices are touched."""
    return global_state.process_id


def join(process: ProcessInfo, facts: Mapping[str, str], seconds: float) -> None:
    """Joins this process to the others, before it touches devices. From here on only host 0 prints to stdout.

    `facts` (`rendezvous.facts`) must be those of host 0. A host that fails, or sends no heartbeat for `seconds`, ends
    the others with exit code 1 and a message that names it. Raises ValueError as `rendezvous` does.
    """
    names = rendezvous(process, facts, seconds)
    # JAX's preemption service would take SIGTERM, which this program handles itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        process.coordinator,
        process.count,
        process.index,
        coordinator_bind_address=process.coordinator if listening_addresses(process.coordinator) else None,
        local_device_ids=process.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=round(seconds),
        heartbeat_timeout_seconds=round(BACKSTOP * seconds),
        shutdown_timeout_seconds=round(seconds),
    )
    print(f"hosts: {', '.join(names)}", flush=True)
    if process.index:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open until the process ends
    _joined.append(_Hosts(names, seconds))
    if process.index:
        _call_on_abort(_lost_service)
    threading.Thread(target=_watch, args=_joined, name="hosts", daemon=True).start()


def first_host_first(make: Callable[[], Result]) -> Result:
    """`make()` on host 0 first, then on the others, which find in a shared folder what host 0 wrote."""
    peers = all_peers()
    if peers.index:
        peers.wait("first host")
        return make()
    result = make()
    peers.wait("first host")
    return result


def check_same(facts: Mapping[str, object]) -> None:
    """A barrier that compares facts. Raises ValueError where a host is late or differs from host 0 in a fact."""
    if not is_multiprocess():
        return
    hosts = _joined[0]
    key = f"same/{next(hosts.exchanges)}"
    mine = {name: repr(value) for name, value in facts.items()}
    _write(key, json.dumps(mine))
    try:
        global_state.client.wait_at_barrier(f"ling_jax/{key}", round(1000 * hosts.seconds))
    except jax.errors.JaxRuntimeError:
        arrived = _read(key)
        missing = [name for host, name in enumerate(hosts.names) if host not in arrived]
        late = f"{', '.join(missing)} did not come to the comparison of {', '.join(facts)}"
        raise ValueError(f"{late} in {hosts.seconds:g} seconds; see its output") from None
    if lines := differences(parse_object(_read(key)[0], "what host 0 sent"), mine, hosts.names[process_index()]):
        raise ValueError(f"hosts do not agree:\n  {lines}")


def stop_after(done: int, number: int | None, ahead: int) -> int | None:
    """The signal for which all hosts stop after `done` steps, or None where the run continues. Called every step.

    `number` is the signal that this host has received, if any. No host may call it for `done` steps before all others
    have called it for `done - ahead`. So every host has read a signal before the step at which all stop.
    """
    if not is_multiprocess():
        return number
    asked = _read("stop")
    if number is not None and process_index() not in asked:
        asked[process_index()] = f"{done + ahead} {number}"
        _write("stop", asked[process_index()])
    stops = sorted(tuple(map(int, text.split())) for text in asked.values())
    return next((number for step, number in stops if step <= done), None)


def post_signal(number: int) -> None:
    """Sends host 0 the number of a signal that this host got; host 0 reads it by `posted_signal`."""
    if is_multiprocess():
        _write("signal", str(number))


def posted_signal() -> int | None:
    """The number of a signal that another host got, if any. It asks the coordination service, about a millisecond."""
    return next((int(text) for _, text in sorted(_read("signal").items())), None) if is_multiprocess() else None


def leave() -> None:
    """Announces that this host ends well, so that the others do not take it for lost."""
    if is_multiprocess():
        _joined[0].leaving.set()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        _write("ended", DONE)


def on_hang(write_stacks: Callable[[], None] | None) -> None:
    """Sets the function that this process calls before it ends because another host hangs; None: none."""
    _write_stacks[:] = [write_stacks] if write_stacks else []


def end_hung(why: str) -> NoReturn:
    """Ends this process and all others with `EXIT_HUNG`, the others after their `on_hang`."""
    print_last(f"error: {why}")
    if is_multiprocess():
        message = f"{own_name(process_index())}: {why}"
        # In a thread, because the service does not answer while host 0 is suspended.
        ending = threading.Thread(target=_end, args=(message, EXIT_HUNG), kwargs={"others": EXIT_HUNG}, daemon=True)
        ending.start()
        ending.join(8 * _joined[0].seconds / POLLS)
    os._exit(EXIT_HUNG)


def end_all(why: str, code: int) -> None:
    """Ends this process and all others with a message and an exit code; returns where the process is alone."""
    if is_multiprocess():
        print_last(why)
        _end(f"{_joined[0].names[process_index()]}: {why}", code, others=code)


def fail(error: BaseException, code: int = 1) -> None:
    """Prints an error, ends this process with `code`, and the others with a message about it.

    Returns where the process is alone. If another host's end may be the cause, it first waits for the watch, which then
    names that host and ends this process.
    """
    if not is_multiprocess():
        return
    if _of_communication(error):
        last_poll = _joined[0].polls + POLLS + 3
        while _joined[0].polls < last_poll:
            time.sleep(0.1)
    if isinstance(error, ValueError | OSError):
        print_last("; ".join((f"error: {error}", *getattr(error, "__notes__", ()))))
    else:
        print_last("".join(traceback.format_exception(error)))
    _end(f"{_joined[0].names[process_index()]}: {type(error).__name__}: {error}", code)


def _of_communication(error: BaseException | None) -> bool:
    """Whether an error or its cause is one of devices, such as a collective that lacks a host."""
    if error is None:
        return False
    of_devices = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    return of_devices or _of_communication(error.__cause__ or error.__context__)


def _watch(hosts: _Hosts) -> None:
    """Writes this host's heartbeat, and ends the process when another host's stops."""
    seen = dict.fromkeys(range(len(hosts.names)), ("", 0))  # host -> (its last heartbeat, polls since then)
    for beat in itertools.count():
        try:
            _write("alive", str(beat))
            if hosts.leaving.wait(hosts.seconds / POLLS):
                return
            ended, heartbeats = _read("ended"), _read("alive")
        except jax.errors.JaxRuntimeError:
            if not hosts.leaving.is_set():
                _lost_service()
            return
        if hosts.leaving.is_set():
            return
        for message in ended.values():
            if message != DONE:
                code, _, why = message.partition(" ")
                _end_after(why, int(code))
        # Polls are counted, not seconds: a process that was suspended does not take the others for lost.
        for host, (last, count) in seen.items():
            seen[host] = (last, count + 1) if heartbeats.get(host, "") == last else (heartbeats[host], 0)
        lost = [hosts.names[host] for host, (_, count) in seen.items() if count > POLLS and host not in ended]
        if lost:
            _end_after(f"{', '.join(lost)}: no sign of life in {hosts.seconds:g} seconds", 1)
        hosts.polls += 1


def _end_after(why: str, code: int) -> NoReturn:
    if code == EXIT_HUNG and _write_stacks:
        _write_stacks[0]()
    print_last(f"error: {why}; {_joined[0].names[process_index()]} ends too")
    _end(why, code, others=code)


def _end(message: str, code: int, *, others: int = 1) -> NoReturn:
    """Ends this process with `code`, and the others with a message and the code `others`.

    It does not exit through the interpreter, which would wait for hosts that wait for this one in the middle of a step.
    """
    _joined[0].leaving.set()  # the watch must not report the effects of this end
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _write("ended", f"{others} {message}")
        if process_index() == 0:  # the service runs in this process: the others must read the message first
            deadline = time.monotonic() + 4 * _joined[0].seconds / POLLS
            while len(_read("ended")) < len(_joined[0].names) and time.monotonic() < deadline:
                time.sleep(0.1)
    os._exit(code)


def _lost_service() -> NoReturn:
    first, own = _joined[0].names[0], _joined[0].names[process_index()]
    why = "it died or was cut off, unless the lines above say something else: JAX's coordination service runs in it"
    print(f"error: {first} is lost: {why}; {own} ends too", file=sys.stderr, flush=True)
    os._exit(1)


def _call_on_abort(end: Callable[[], NoReturn]) -> None:
    """Calls `end` on SIGABRT: JAX aborts a process that loses the coordination service, without naming the lost host.

    The abort comes from a thread of JAX's, where only a C function can be called. The module keeps that function.
    """
    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: end()))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, type(_handlers[-1]))
    libc.signal(signal.SIGABRT, _handlers[-1])


def _write(what: str, value: str) -> None:
    """Sets this host's value of a key, in place of an earlier one."""
    global_state.client.key_value_set(f"ling_jax/{what}/{process_index()}", value, allow_overwrite=True)


def _read(what: str) -> dict[int, str]:
    """{host: its value of a key}."""
    found = global_state.client.key_value_dir_get(f"ling_jax/{what}/")
    return {int(key.rpartition("/")[2]): value for key, value in found}
