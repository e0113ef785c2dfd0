"""Several collectors as one: each moves its episodes on in a thread of its own.

Which engine has an episode is no part of any result: its tokens depend on its weights, seed and context alone, and all
engines have one fingerprint.
"""

import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ling_jax.messages import error_text
from ling_jax.rl.collector import Collector, EngineError, Progress, Use
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader

WAIT_SECONDS = 0.2  # for a piece of decoding to end; our choice: signals are looked at as often
MAX_FAILURES = 3  # of an engine, without a piece of decoding between them: our choice


class Pool:
    """The calls of a `Collector`, for several. `advance` returns as soon as one of them has moved its episodes on.

    An episode that is new goes to the collector with the fewest episodes for a slot. Where one has none to draw for,
    and another has some that wait for a slot, these are moved: their contexts are read again. An engine that fails is
    made anew, and its episodes go on; `MAX_FAILURES` in a row end the run.
    """

    def __init__(self, make: Callable[[int], Collector], count: int, note: Callable[[str, str], None]):
        """`make(number)` makes a collector; `note(part, error)` is told of each failure of an engine."""
        self._make, self._note = make, note
        self._members = [_Member(number, make(number)) for number in range(count)]
        self._changing = threading.Lock()
        self._moved: list[Progress] = []

    @property
    def reader(self) -> Reader:
        """Of all of them."""
        return self._members[0].collector.reader

    @property
    def fingerprint(self) -> str:
        """Of each engine."""
        return self._members[0].collector.fingerprint

    @property
    def slots(self) -> int:
        """Of all engines together."""
        return sum(member.collector.slots for member in self._members)

    @property
    def link(self) -> None:
        """A pool runs on one process."""
        return None

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """A block in which pieces are under way; at its end none is."""
        try:
            yield
        finally:
            concurrent.futures.wait(self._pieces)

    def prepare(self, params: Any, version: int) -> str:
        """Copies new weights beside the ones in use, engine by engine; their digest."""
        with self._changing:
            digests = [member.collector.prepare(params, version) for member in self._members]
        return digests[0]

    def commit(self) -> None:
        """The prepared weights are those of all later pieces."""
        concurrent.futures.wait(self._pieces)
        self._collect()
        for member in self._members:
            member.collector.commit()

    def advance(self, episodes: Mapping[int, Episode], until: Mapping[int, int] | None = None) -> list[Progress]:
        """Pieces of decoding, begun for all collectors that have none under way; what those that ended did.

        Raises EngineError where an engine fails again and again.
        """
        self._place(episodes)
        for member in self._members:
            member.begin(until or {})
        concurrent.futures.wait(self._pieces, WAIT_SECONDS, concurrent.futures.FIRST_COMPLETED)
        return self.settled(episodes)

    def settled(self, episodes: Mapping[int, Episode]) -> list[Progress]:
        """What the pieces that have ended did for these episodes, and was not told yet."""
        self._collect()
        moved, self._moved = self._moved, []
        return sorted(progress for progress in moved if progress.id in episodes)

    def take_use(self) -> Use:
        """Of all collectors together."""
        uses = [dataclasses.astuple(member.collector.take_use()) for member in self._members]
        return Use(*map(sum, zip(*uses, strict=True)))

    def close(self) -> None:
        """All episodes leave, and the threads end."""
        for member in self._members:
            member.thread.shutdown(wait=True, cancel_futures=True)
            member.collector.close()

    @property
    def _pieces(self) -> list[concurrent.futures.Future[list[Progress]]]:
        """Those that are under way, and those whose end was not seen yet."""
        return [member.piece for member in self._members if member.piece is not None]

    def _collect(self) -> None:
        for member in self._members:
            if member.piece is None or not member.piece.done():
                continue
            piece, member.piece = member.piece, None
            try:
                self._moved += piece.result()
                member.failures = 0
            except EngineError as error:
                self._moved += member.collector.settled(member.episodes)
                self._replace(member, error)

    def _replace(self, member: "_Member", error: EngineError) -> None:
        """A new engine in the place of one that failed; its episodes and their sessions go over."""
        member.failures += 1
        self._note(f"engine {member.number}", error_text(error))
        if member.failures >= MAX_FAILURES:
            raise EngineError(
                f"engine {member.number} failed {member.failures} times in a row; the last error: {error}"
            )
        with self._changing:  # weights may be on their way
            failed, member.collector = member.collector, self._make(member.number)
            member.collector.engine.adopt(failed.engine)
        for id in list(failed.ids):
            failed.move(id, member.collector)
        failed.close()

    def _place(self, episodes: Mapping[int, Episode]) -> None:
        """Decides which collector has which episode, of those that have no piece under way."""
        idle = [member for member in self._members if member.piece is None]
        for member in idle:
            member.episodes = {i: e for i, e in member.episodes.items() if episodes.get(i) is e and e.running}
        placed = {i for member in self._members for i in member.episodes}
        for i in sorted(episodes.keys() - placed):
            if episodes[i].running and idle:
                min(idle, key=lambda member: member.load).episodes[i] = episodes[i]
        self._balance(idle)

    def _balance(self, idle: list["_Member"]) -> None:
        """Moves episodes that wait for a slot to engines that have free ones."""
        while len(idle) > 1:
            full, free = max(idle, key=lambda member: member.load), min(idle, key=lambda member: member.load)
            if full.load <= 1 or free.load + 1 / free.collector.slots > 1:
                return
            i = min(full.drawing, key=lambda i: (len(full.episodes[i].context), i))
            free.episodes[i] = full.episodes.pop(i)
            if i in full.collector.ids:
                full.collector.move(i, free.collector)


class _Member:
    """A collector, its thread, and the episodes that are its own."""

    def __init__(self, number: int, collector: Collector):
        self.number, self.collector, self.failures = number, collector, 0
        self.thread = concurrent.futures.ThreadPoolExecutor(1, f"engine {number}")
        self.episodes: dict[int, Episode] = {}
        self.piece: concurrent.futures.Future[list[Progress]] | None = None

    @property
    def drawing(self) -> list[int]:
        """The episodes that have or want a slot."""
        return [i for i, episode in self.episodes.items() if episode.running and episode.pending is None]

    @property
    def load(self) -> float:
        """Of these, for each slot."""
        return len(self.drawing) / self.collector.slots

    def begin(self, until: Mapping[int, int]) -> None:
        """A piece of decoding, where none is under way and there is something to do."""
        if self.piece is None and (self.episodes or self.collector.ids):
            self.piece = self.thread.submit(self.collector.advance, dict(self.episodes), until)
