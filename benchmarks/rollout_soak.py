"""Many requests, and long ones: the engine under load, for `benchmarks.rollout`."""

import contextlib
import dataclasses
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from benchmarks.rollout_speed import engine_of
from ling_jax.config import ModelConfig
from ling_jax.engine import EXACT_TILE, Engine, Request, score
from ling_jax.engine.schedule import PIECE
from ling_jax.engine.step import run_tiles

SLOTS, MEAN_LENGTH, MAX_LENGTH, MAX_PROMPT = 32, 64, 512, 64
PAUSE_EVERY, SCORED = 25, 100
LOADS = 20
CACHES = 64 * 1024**2  # bytes, more than those of a machine


@dataclasses.dataclass
class Soak:
    """What a run of many requests gave."""

    answered: int
    slots_busy: float  # live rows / slots of the draws of steps in which a request waits
    compilations: int
    scored: int
    score_difference: float  # of so many requests, between recorded and scored log-probs
    load_seconds: float  # median of `load` and one step, under way
    memory: str
    tokens_per_second: float


def soak(params, config: ModelConfig, count: int) -> Soak:
    """Runs lognormal lengths through an exact engine; now and then a request is paused and comes back a step later."""
    engine = engine_of(params, config, SLOTS, MAX_PROMPT + MAX_LENGTH, EXACT_TILE)
    warm_up(engine)
    requests = lognormal_requests(config, count)
    with count_compilations() as compilations:
        seconds, busy, found, memory = _run(engine, requests)
        load_seconds = loads_under_way(engine, params)
    tokens = [[*request.tokens, *found[request.id][0]] for request in requests[:SCORED]]
    scored = score(params, tokens, config)
    difference = max(
        float(np.max(np.abs(logps[-len(found[r.id][1]) :] - np.float32(found[r.id][1]))))
        for r, logps in zip(requests, scored, strict=False)
    )
    total = sum(len(drawn) for drawn, _ in found.values())
    answered = sum(len(found[request.id][0]) == request.max_new_tokens for request in requests)
    return Soak(answered, busy, len(compilations), len(tokens), difference, load_seconds, memory, total / seconds)


def _run(engine: Engine, requests: list[Request]):
    """(seconds, busy share of the slots, {id: (tokens, logps)}, growth of memory in words)."""
    for request in requests:
        engine.submit(request)
    found: dict[int, tuple[list[int], list[float]]] = {request.id: ([], []) for request in requests}
    unfinished, live, rows, memory, start = set(found), 0, 0, {}, time.perf_counter()
    while engine.busy:
        waiting = len(unfinished) > SLOTS
        events = engine.step()
        for event in events:
            found[event.id][0].extend(event.tokens)
            found[event.id][1].extend(event.logps)
            if event.finish_reason:
                unfinished.remove(event.id)
                engine.release(event.id)
        drawn = [len(event.tokens) for event in events if event.tokens]
        if waiting and drawn:
            live, rows = live + sum(drawn), rows + SLOTS * max(drawn)
        if engine.steps % PAUSE_EVERY == 0 and (going := [e.id for e in events if not e.finish_reason]):
            engine.resume(engine.pause(going[0]))
        memory[len(requests) - len(unfinished)] = memory_bytes()
    seconds = time.perf_counter() - start
    first = min(done for done in memory if done >= len(requests) // 10)
    words = f"memory {memory[first] / 1e6:.0f} MB after {first} requests, {memory_bytes() / 1e6:.0f} MB at the end"
    return seconds, live / rows, found, words


def lognormal_requests(config: ModelConfig, count: int) -> list[Request]:
    """Requests whose numbers of new tokens are lognormal (sigma 1) with mean 64, at most 512; prompts of 1 to 64."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(MEAN_LENGTH) - 0.5, 1, count), 1, MAX_LENGTH).astype(int)
    prompts = (rng.integers(0, config.vocab_size, rng.integers(1, MAX_PROMPT + 1)).tolist() for _ in range(count))
    return [
        Request(i, tokens, int(length), seed=i) for i, (tokens, length) in enumerate(zip(prompts, lengths, strict=True))
    ]


def warm_up(engine: Engine) -> None:
    """A short and a long prompt; the engine has compiled all that it needs."""
    for number, length in enumerate((MAX_PROMPT, engine.prefill_tokens + 1)):
        engine.submit(Request(number, [0] * length, PIECE, seed=0))
    while engine.busy:
        for event in engine.step():
            if event.finish_reason:
                engine.release(event.id)


def loads_under_way(engine: Engine, params) -> float:
    """Median seconds of new weights and one step, while all slots draw."""
    for number in range(SLOTS):
        engine.submit(Request(number, [0], MAX_LENGTH, seed=number))
    engine.step()
    seconds = []
    for version in range(1, LOADS + 1):
        start = time.perf_counter()
        engine.load(params, version, in_flight="keep")
        events = engine.step()
        seconds.append(time.perf_counter() - start)
        assert {event.version for event in events} == {version}
    for number in range(SLOTS):
        engine.release(number)
    return float(np.median(seconds))


def host_growth(params, config: ModelConfig, length: int, slots: int = 2) -> tuple[float, str]:
    """(host seconds a token at the end of rollouts over those at the beginning of others, both in words).

    Both go on in turn, and medians are compared. The host's seconds are those of `step` without those in which the
    compiled program takes its arguments and runs. The program of a long context leaves little of the host's data in
    the caches; so that this does not count, they are emptied behind both.
    """
    steps = min(200, length // PIECE // 8)
    old, new = (engine_of(params, config, slots, length) for _ in range(2))
    for number in range(slots):
        old.submit(Request(number, [0], length - 1, seed=number))
        new.submit(Request(number, [0], length - 1, seed=number))
    for _ in range(length // PIECE - steps - 1):
        old.step()
    device, seconds = [], {"end": [], "beginning": []}
    larger_than_caches = np.zeros(CACHES // 8)

    def timed(*arguments):
        start = time.perf_counter()
        result = jax.block_until_ready(run_tiles(*arguments))
        larger_than_caches[:] += 1
        device.append(time.perf_counter() - start)
        return result

    with mock.patch.object(old.device, "_run_tiles", timed), mock.patch.object(new.device, "_run_tiles", timed):
        for _ in range(steps):
            for name, engine in (("end", old), ("beginning", new)):
                start = time.perf_counter()
                events = engine.step()
                seconds[name].append(time.perf_counter() - start - device[-1])
                assert sum(len(event.tokens) for event in events) == slots * PIECE
    end, beginning = (float(np.median(found)) / (slots * PIECE) for found in seconds.values())
    words = f"{slots} rollouts of {length} tokens, host {beginning * 1e6:.1f} us a token, at the end {end * 1e6:.1f}"
    return end / beginning, words


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """The list grows by an entry with every program that XLA compiles."""
    found, active = [], [True]

    def listen(event: str, seconds: float, **_) -> None:
        if active and event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)  # JAX has no public way to take it away again
    yield found
    active.clear()


def memory_bytes() -> int:
    """Resident memory of this process: the current one on Linux, the peak elsewhere."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
