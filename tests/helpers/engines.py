"""Small engines whose programs all tests of this folder share, and what must hold after each of their steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.engine import EXACT_TILE, Engine, Request
from ling_jax.engine.memory import plan_memory
from ling_jax.engine.step import read_chunks, run_tiles
from ling_jax.model.token_info import PAGE_SIZE
from tests.helpers.tiny import random_params, tiny_config

# All heads share one norm group: alone, the norm of a first token divides by q·k, which may be as good as 0.
FIELDS = dict(
    compute_dtype="float32", remat="none", num_heads=4, num_norm_groups=1, max_length=256, first_dense_layers=0
)
DENSE = "2.0 without experts"
SLOTS, PAGES, PREFILL, END = 4, 24, 60, 0  # all pages of a longest context, and half as many


@functools.cache
def model_of(family: str = "2.6"):
    """(config, weights, other weights)."""
    dense = {"first_dense_layers": 3} if family == DENSE else {}
    config = tiny_config("2.0" if family == DENSE else family, **FIELDS | dense)
    return config, *(random_params(config, seed=seed, dtype="float32", std=0.2) for seed in (0, 1))


@functools.cache
def memory_bytes(family: str) -> int:
    """What `SLOTS` slots, as many parked states and `PAGES` pages take."""
    config, *_ = model_of(family)
    plan = plan_memory(config, SLOTS, 1e9)
    return plan.states * plan.state_bytes + PAGES * plan.page_bytes


def small_engine(
    family: str = "2.6", *, prefill_tokens=PREFILL, load=True, row_tile: int | None = EXACT_TILE
) -> Engine:
    """An engine of the sizes that all tests share; up to `PREFILL` tokens a step compile nothing new."""
    config, params, _ = model_of(family)
    engine = Engine(
        config, slots=SLOTS, memory_bytes=memory_bytes(family), row_tile=row_tile, prefill_tokens=prefill_tokens
    )
    if load:
        engine.load(params, version=0)
    return engine


def withhold(engine: Engine, *, pages: int = 0, states: int = 0) -> None:
    """Takes pages and states away for good, so that memory runs short without other shapes."""
    engine.withheld = [
        ([part.pages.take() for _ in range(pages)], [part.states.take() for _ in range(states)])
        for part in engine._parts
    ]


def check_places(engine: Engine) -> None:
    """Every page and state is free or belongs to one sequence, and slots agree with their sequences."""
    sequences = list(engine._sequences.values())
    withheld = getattr(engine, "withheld", [([], [])] * engine.plan.parts)
    for part, (pages, states) in zip(engine._parts, withheld, strict=True):
        of_part = [s for s in sequences if s.part == part.number]
        held_pages, held_states = [p for s in of_part for p in s.pages], [s.state for s in of_part if s.state >= 0]
        assert sorted([*part.pages._free, *held_pages, *pages]) == list(range(1, engine.plan.pages))
        assert sorted([*part.states._free, *held_states, *states]) == list(range(engine.plan.states))
        assert all(s.slot in part.slots for s in of_part if s.slot >= 0)
    seated, waiting = {s.id: s.slot for s in sequences if s.slot >= 0}, {s.id for s in engine._waiting}
    assert seated == {s.id: slot for slot, s in enumerate(engine._slots) if s is not None}
    assert len(waiting) == len(engine._waiting) and not waiting & (seated.keys() | engine._parked.keys())
    for s in sequences:
        if s.slot >= 0:
            row = engine._table.table[s.slot].tolist()
            assert row == s.pages + [0] * (len(row) - len(s.pages))
        assert s.read <= len(s.pages) * PAGE_SIZE and (s.read == 0 or s.state >= 0)
        assert s.id in seated or s.id in waiting or s.finish_reason is not None


def poison(engine: Engine) -> None:
    """Fills every free page and state with NaN; page 0 must still be zero."""
    held = [s for s in engine._sequences.values() if s.state >= 0]
    free_pages, free_states = np.ones(engine.plan.pages, bool), np.ones(engine.plan.states, bool)
    free_pages[[0, *(page for s in held for page in s.pages)]] = False
    free_states[[s.state for s in held]] = False
    engine.device.pool, zero = _poisoned(engine.device.pool, free_pages, free_states)
    assert zero


@jax.jit
def _poisoned(pool, free_pages, free_states):
    def leaf(path, x):  # [repeats, count, places, …]
        free = free_states if path[-1].key == "state" else free_pages
        return jnp.where(free.reshape(-1, *[1] * (x.ndim - 3)), jnp.nan, x)

    pages = [x for path, x in jax.tree_util.tree_leaves_with_path(pool) if path[-1].key != "state"]
    zero = jnp.all(jnp.asarray([jnp.all(x[:, :, 0] == 0) for x in pages]))
    return jax.tree_util.tree_map_with_path(leaf, pool), zero


def finish(engine: Engine, steps: int = 2000) -> list:
    """The events until the engine is idle, its places checked after every step."""
    events = []
    for _ in range(steps):
        if not engine.busy:
            return events
        events += engine.step()
        check_places(engine)
    raise AssertionError(f"not idle after {steps} steps")


def results(events) -> dict:
    """{id: (tokens, log-probs)}, with the numbers of the first tokens checked."""
    found = {}
    for event in events:
        tokens, logps = found.setdefault(event.id, ([], []))
        assert event.error or event.finish_reason == "cancelled" or event.first == len(tokens)
        tokens += event.tokens
        logps += event.logps
    return found


def run_all(engine: Engine, *requests: Request) -> dict:
    for request in requests:
        engine.submit(request)
    return results(finish(engine))


def prompt_of(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, 40, length).tolist()


def programs() -> tuple[int, int]:
    """Compiled programs of the steps."""
    return run_tiles._cache_size(), read_chunks._cache_size()


def release_all(engine: Engine) -> None:
    for id in list(engine._sequences):
        engine.release(id)
    check_places(engine)
