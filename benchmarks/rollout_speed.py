"""How fast the engine decodes: the timed loops of `benchmarks.rollout`."""

import contextlib
import importlib.util
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.bare_loop import bare_seconds
from ling_jax.config import ModelConfig
from ling_jax.engine import EXACT_TILE, Engine, Request, memory_for
from ling_jax.engine.schedule import PIECE
from ling_jax.engine.weights import decoding_copy

PIECES = 20  # calls of eight tokens that are timed in a turn
TORCH_THREADS = (1, 2)  # eager PyTorch is faster with one where its operations are small


def engine_of(params, config: ModelConfig, slots: int, max_tokens: int, row_tile: int | None = None) -> Engine:
    """An engine for that many requests of that length, with weights."""
    memory = memory_for(config, slots=slots, max_tokens=max_tokens)
    engine = Engine(config, slots=slots, memory_bytes=memory, row_tile=row_tile)
    engine.load(params, version=0)
    return engine


def engine_seconds(engine: Engine, pieces: int) -> np.ndarray:
    """Seconds of each of `pieces` steps behind a first one, all slots busy, from contexts of one token."""
    batch, seconds = engine.plan.slots, []
    for number in range(batch):
        engine.submit(Request(number, [0], PIECE * (pieces + 1), seed=number))
    for _ in range(pieces + 1):
        start = time.perf_counter()
        events = engine.step()
        seconds.append(time.perf_counter() - start)
        assert sum(len(event.tokens) for event in events) == batch * PIECE
    for number in range(batch):
        engine.release(number)
    return np.asarray(seconds[1:])


def best_of_turns(turns: Mapping[str, Callable[[], np.ndarray]], times: int) -> dict[str, float]:
    """Seconds of each kind of turn, by turns: of every piece the best, added up."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in turns}
    for number in range(times + 1):
        for name, turn in turns.items():
            seconds = turn()
            if number:  # the first one warms up
                found[name].append(seconds)
    return {name: float(np.min(seconds, axis=0).sum()) for name, seconds in found.items()}


def bare_loop_ratio(params, config: ModelConfig, batch: int, times: int) -> tuple[float, str]:
    """(the engine's tokens/s over the bare loop's, both in words)."""
    engine = engine_of(params, config, batch, PIECE * (PIECES + 1))
    served = decoding_copy(params, config)
    turns = {
        "engine": lambda: engine_seconds(engine, PIECES),
        "bare loop": lambda: bare_seconds(served, config, batch, PIECES),
    }
    best = best_of_turns(turns, times)
    return best["bare loop"] / best["engine"], in_words(best, batch)


def exact_ratio(params, config: ModelConfig, batch: int, times: int) -> tuple[float, str]:
    """(time of a step in tiles of 64 rows over that of one tile of all slots, both in words)."""
    engines = {
        "exact": engine_of(params, config, batch, PIECE * (PIECES + 1), EXACT_TILE),
        "not exact": engine_of(params, config, batch, PIECE * (PIECES + 1)),
    }
    turns = {name: lambda engine=engine: engine_seconds(engine, PIECES) for name, engine in engines.items()}
    best = best_of_turns(turns, times)
    return best["exact"] / best["not exact"], in_words(best, batch)


def torch_ratio(params, config: ModelConfig, batch: int, times: int) -> tuple[float, str]:
    """(the engine's tokens/s over those of eager PyTorch, both in words); (NaN, why) without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return np.nan, "not measured: PyTorch is missing, pip install -e '.[bench]'"
    engine = engine_of(params, config, batch, PIECE * (PIECES + 1))
    with torch_peer(config, batch, PIECES) as peer_seconds:
        turns = {"engine": lambda: engine_seconds(engine, PIECES)}
        turns |= {f"PyTorch, {n} threads": lambda n=n: peer_seconds(n) for n in TORCH_THREADS}
        best = best_of_turns(turns, times)
    return min(seconds for name, seconds in best.items() if name != "engine") / best["engine"], in_words(best, batch)


@contextlib.contextmanager
def torch_peer(config: ModelConfig, batch: int, pieces: int) -> Iterator[Callable[[int], np.ndarray]]:
    """`peer(threads)` has the seconds of each piece of a turn in a process of its own, which rests between turns."""
    command = [sys.executable, "-m", "benchmarks.torch_decode"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(pickle.dumps((config, batch, pieces)))

        def turn(threads: int) -> np.ndarray:
            process.stdin.write(f"{threads}\n".encode())
            process.stdin.flush()
            return np.asarray(json.loads(process.stdout.readline()))

        yield turn
        process.stdin.close()


def context_seconds(engines: Mapping[str, Engine], contexts: Sequence[int], times: int) -> dict[str, dict[int, float]]:
    """{name: {length of the context: best seconds of a step of eight tokens of every request}}, by turns."""
    best = {name: dict.fromkeys(contexts, np.inf) for name in engines}
    for _ in range(times):
        for name, engine in engines.items():
            for context in contexts:
                _begin_behind(engine, context, PIECE * 3)
                engine.step()
                for _ in range(2):
                    start = time.perf_counter()
                    engine.step()
                    best[name][context] = min(best[name][context], time.perf_counter() - start)
                for number in range(engine.plan.slots):
                    engine.release(number)
    return best


def _begin_behind(engine: Engine, context: int, room: int) -> None:
    """All slots stand behind a context as if they had read it: what its pages hold does not change the time."""
    for number in range(engine.plan.slots):
        engine.submit(Request(number, [0] * context, room, seed=number))
    engine._admit()
    for sequence in engine._active():
        if not engine._make_room(sequence, context):
            raise RuntimeError(f"the engine has no pages for {engine.plan.slots} contexts of {context} tokens")
        sequence.read = context - 1


def in_words(seconds: Mapping[str, float], batch: int) -> str:
    """`engine 5200, bare loop 5300 tokens/s`."""
    tokens = batch * PIECE * PIECES
    return ", ".join(f"{name} {tokens / value:.0f}" for name, value in seconds.items()) + " tokens/s"
