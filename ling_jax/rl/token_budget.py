"""C3PO++: how much is generated for one optimisation step, and what becomes of rollouts that did not end in time.

A pool of rollouts generates until a budget of tokens is used up. Those that have not ended are paused and go on under
the next weights, but not for ever (Ring-1T report, algorithm 1; Ling 2.6 report §4.2.1). Generating itself is not
done here: the engine says how far each rollout came.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ling_jax.config import nearest

COUNTS = ("completed", "generated")
REFILLS = ("iteration", "continuous")

Progress = Mapping[int, tuple[int, bool]]  # rollout -> (tokens generated since the last one, whether it has ended)
Generate = Callable[[tuple[int, ...], int], Progress]  # of the active rollouts, under a weight version


@dataclasses.dataclass(frozen=True)
class Budget:
    """Raises ValueError on what is out of range, and where partial rollouts are kept but none could be used.

    The two reports differ in what counts: Ring-1T's algorithm counts the full length of rollouts that ended in the
    iteration ("completed"), Ling 2.6 what was generated in it ("generated"). `max_staleness` is that of
    `staleness.Limits`: a rollout that goes on under new weights needs at least 1.
    """

    tokens: int  # Φ
    pool_size: int  # Ω
    max_retention: int  # σ: how often a rollout may be paused and go on
    max_staleness: int
    count: str = "generated"  # Ling 2.6 report §4.2.1: "cumulative number of generated tokens"
    refill: str = "continuous"  # Ling 2.6 report §4.2.1: new work is submitted while old is collected

    def __post_init__(self):
        for name, least in (("tokens", 1), ("pool_size", 1), ("max_retention", 0), ("max_staleness", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name, known in (("count", COUNTS), ("refill", REFILLS)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is {value!r}{nearest(str(value), known)}; expected one of {', '.join(known)}")
        if self.max_staleness == 0 and self.max_retention > 0:
            raise ValueError(
                f"max_staleness is 0 and max_retention {self.max_retention} keeps partial rollouts: each has a segment "
                "one version old as soon as the weights move, so all are discarded and the pool drains at every "
                "update; set max_staleness to at least 1, or max_retention to 0"
            )


class Rollout(NamedTuple):
    id: int
    retention: int = 0  # how often it was paused
    segments: tuple[tuple[int, int], ...] = ()  # (weight version, tokens), in order

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.segments)


@dataclasses.dataclass(frozen=True)
class Pool:
    """What waits and what generates, in ascending order of ids, and what has happened in this iteration."""

    queue: tuple[int, ...] = ()
    active: tuple[Rollout, ...] = ()
    version: int = 0
    purged: tuple[int, ...] = ()
    resumed: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    completed: tuple[Rollout, ...] = ()  # in the order of ending
    generated: int = 0


def submit(pool: Pool, ids: Iterable[int]) -> Pool:
    """With more rollouts in the queue. Raises ValueError on an id that the queue or the pool holds."""
    queue, active = set(pool.queue), {rollout.id for rollout in pool.active}
    for rollout in ids:
        if rollout in queue or rollout in active:
            raise ValueError(f"rollout {rollout} was submitted before; give every rollout an id of its own")
        queue.add(rollout)
    return dataclasses.replace(pool, queue=tuple(sorted(queue)))


def begin(pool: Pool, budget: Budget) -> Pool:
    """An iteration's start: the unfinished age by one, those too old are purged for good, free slots are filled."""
    aged = [rollout._replace(retention=rollout.retention + 1) for rollout in pool.active]
    active = tuple(rollout for rollout in aged if rollout.retention <= budget.max_retention)
    purged = tuple(rollout.id for rollout in aged if rollout.retention > budget.max_retention)
    resumed = tuple(rollout.id for rollout in active)
    return _refill(Pool(pool.queue, active, pool.version, purged, resumed), budget)


def is_open(pool: Pool, budget: Budget) -> bool:
    """Whether the iteration goes on: something generates, and the budget is not used up."""
    used = pool.generated if budget.count == "generated" else sum(rollout.tokens for rollout in pool.completed)
    return bool(pool.active) and used < budget.tokens


def advance(pool: Pool, progress: Progress, budget: Budget) -> Pool:
    """After a slice of generation: rollouts that ended leave, and with refill "continuous" others take their slots.

    Raises ValueError where `progress` is empty or names a rollout that is not active.
    """
    active = {rollout.id: rollout for rollout in pool.active}
    for i, (tokens, _) in progress.items():
        if i not in active or tokens < 0:
            raise ValueError(f"progress of rollout {i} is {tokens} tokens; active are {tuple(active)}")
    if not progress:
        raise ValueError(f"no progress in a slice of generation; expected some of the active rollouts {tuple(active)}")
    grown = {i: _grow(active[i], pool.version, progress[i][0]) for i in sorted(progress)}
    ended = [i for i in grown if progress[i][1]]
    pool = dataclasses.replace(
        pool,
        active=tuple(grown.get(i, rollout) for i, rollout in active.items() if i not in ended),
        completed=pool.completed + tuple(grown[i] for i in ended),
        generated=pool.generated + sum(tokens for tokens, _ in progress.values()),
    )
    return _refill(pool, budget) if budget.refill == "continuous" else pool


def close(pool: Pool) -> tuple[Pool, dict[str, Any]]:
    """(the pool under the next weight version, the iteration's record for the log: JSON, ids and counts)."""
    record = {
        "version": pool.version,
        "purged": list(pool.purged),
        "resumed": list(pool.resumed),
        "added": list(pool.added),
        "completed": [rollout.id for rollout in pool.completed],
        "completed_segments": {str(done.id): [list(segment) for segment in done.segments] for done in pool.completed},
        "paused": [[rollout.id, rollout.tokens, rollout.retention] for rollout in pool.active],
        "completed_tokens": sum(rollout.tokens for rollout in pool.completed),
        "generated_tokens": pool.generated,
    }
    return dataclasses.replace(pool, version=pool.version + 1), record


def iterate(pool: Pool, generate: Generate, budget: Budget) -> tuple[Pool, dict[str, Any]]:
    """One whole iteration, as `close` gives it. `generate(ids, version)` moves active rollouts on by a slice."""
    pool = begin(pool, budget)
    while is_open(pool, budget):
        ids = tuple(rollout.id for rollout in pool.active)
        pool = advance(pool, generate(ids, pool.version), budget)
    return close(pool)


def remove(pool: Pool, ids: Iterable[int]) -> Pool:
    """Without rollouts that were discarded elsewhere (too stale, or their environment broke)."""
    gone = set(ids)
    return dataclasses.replace(
        pool,
        queue=tuple(i for i in pool.queue if i not in gone),
        active=tuple(rollout for rollout in pool.active if rollout.id not in gone),
    )


def _refill(pool: Pool, budget: Budget) -> Pool:
    free = max(0, budget.pool_size - len(pool.active))
    new, queue = pool.queue[:free], pool.queue[free:]
    active = tuple(sorted(pool.active + tuple(Rollout(i) for i in new)))
    return dataclasses.replace(pool, queue=queue, active=active, added=pool.added + new)


def _grow(rollout: Rollout, version: int, tokens: int) -> Rollout:
    if not tokens:
        return rollout
    earlier = rollout.segments
    if earlier and earlier[-1][0] == version:
        earlier, tokens = earlier[:-1], earlier[-1][1] + tokens
    return rollout._replace(segments=(*earlier, (version, tokens)))
