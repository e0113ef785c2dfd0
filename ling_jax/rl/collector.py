"""Moves episodes on: an engine draws their tokens, and the sessions of their environments act beside it."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ling_jax.chat.template import Piece, encode_all
from ling_jax.config import ModelConfig
from ling_jax.engine import EXACT_TILE, Engine, Event, Request, Snapshot, memory_for
from ling_jax.envs import environment
from ling_jax.messages import error_text
from ling_jax.model.recorded_experts import empty_experts
from ling_jax.rl.episode import Episode
from ling_jax.rl.link import Link, Operation
from ling_jax.rl.reader import Reader
from ling_jax.rl.sessions import SECONDS, SessionHost, SessionResult
from ling_jax.rl.turns import (
    append_generation,
    append_observation,
    append_result,
    past_actions,
    pending_action,
    tokens_left,
)

PREFILL_TOKENS = 16_384  # that a step reads at most: all episodes go on together where they fit; our choice
WAIT_SECONDS = 0.2  # for a result, where all episodes wait for one; our choice: signals are looked at as often
READ_SECONDS = 1.0  # of reading, after which it returns although nothing was drawn; our choice, as above


@dataclasses.dataclass
class Use:
    """What a collector did with its time, and its engine with its slots, since this was last taken."""

    generating: float = 0.0  # seconds of the engine's steps
    waiting: float = 0.0  # seconds in which all episodes waited for their environments
    loading: float = 0.0  # seconds until new weights were there
    wanted: int = 0  # slots in steps in which an episode waited for one
    live: int = 0  # of these, those that had one


class Progress(NamedTuple):
    """What a piece of decoding did for an episode."""

    id: int
    drawn: int  # tokens that the policy wrote in it
    ended: bool


def make_engine(
    config: ModelConfig,
    reader: Reader,
    slots: int,
    row_tile: int | None = EXACT_TILE,
    mesh: jax.sharding.Mesh | None = None,
    parked: int = 0,
) -> Engine:
    """An engine for so many episodes of the reader's context at a time; `parked` more keep what was read of theirs."""
    return Engine(
        config,
        slots=slots,
        memory_bytes=memory_for(config, slots=slots, max_tokens=reader.context, parked=parked, mesh=mesh),
        row_tile=row_tile,
        prefill_tokens=min(PREFILL_TOKENS, slots * reader.context),
        mesh=mesh,
    )


class EngineError(RuntimeError):
    """A step of an engine failed. Its episodes are where they were before the step; `settled` tells what was done."""


class Collector:
    """An engine and the sessions of the episodes that are in it.

    Which slot an episode has is the engine's business: no token depends on it. Where all sessions are instant, equal
    calls have equal results; when another session's result arrives depends on time.
    """

    def __init__(
        self,
        config: ModelConfig,
        reader: Reader,
        slots: int,
        *,
        temperature: float = 1.0,
        row_tile: int | None = EXACT_TILE,
        session_seconds: float = SECONDS,
        mesh: jax.sharding.Mesh | None = None,
        link: Link | None = None,
        operation: Operation = Operation.GENERATE,
        record_experts: bool = False,
        parked: int = 0,
    ):
        """An engine of so many slots; temperature 0 takes the likeliest tokens.

        It keeps what was read of `parked` episodes more, whose environments act or which wait for a slot.

        With `row_tile` None the last bits of log-probs depend on which episodes run side by side. `session_seconds` is
        the deadline of each opening and each action of a session. With `record_experts` trajectories have the experts
        of their tokens. On several processes, the others learn by the `link` when this one generates, and what for.
        """
        self.link, self.operation = link, operation
        self.reader, self.slots, self.temperature = reader, slots, temperature
        self.engine = make_engine(config, reader, slots, row_tile, mesh, parked)
        self._expert_dtype = empty_experts(0, 0, config).dtype if record_experts else None
        self._sessions = SessionHost(session_seconds)
        self._episodes: dict[int, Episode] = {}
        self._until: Mapping[int, int] = {}  # of `advance`
        self._use = Use()
        self._untold: list[Progress] = []

    def __enter__(self) -> "Collector":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """A block in which the other processes, if there are some, follow this one's engine."""
        if self.link is not None:
            self.link.send_operation(self.operation)
        try:
            yield
        finally:
            self.engine.close()

    def load(self, params: Any, version: int = 0) -> None:
        """New weights: what goes on is read again by them."""
        self.prepare(params, version)
        self.commit()

    def prepare(self, params: Any, version: int) -> str:
        """Copies new weights beside those in use; their digest. May run beside `advance`.

        Raises ValueError on weights that cannot be used, or that came over with other bits: the old ones stay.
        """
        with self._timed("loading"):
            return self.engine.prepare(params, version)

    def commit(self) -> None:
        """The prepared weights are those of what is drawn from here on: contexts are read again by them."""
        self.engine.commit()

    def take_use(self) -> Use:
        """What it did with its time since the last call."""
        use, self._use = self._use, Use()
        return use

    def advance(self, episodes: Mapping[int, Episode], until: Mapping[int, int] | None = None) -> list[Progress]:
        """One piece of decoding for these running episodes, which grow in place; what it did for each, by id.

        An episode whose environment acts has no slot and no progress. There may be nothing to tell, []: where all
        environments act it waits 0.2 s at most, where long contexts are read about a second. Of more episodes than
        slots, those of the lowest ids go first. An episode that is not among these any more leaves, and its session is
        closed. Those in `until`, for a replay, stop at so many tokens of completion, before their environment acts.
        """
        before = {i: episode.drawn for i, episode in episodes.items()}
        bounds, self._until = self._until, until or {}
        for i, episode in list(self._episodes.items()):
            if episodes.get(i) is not episode or self._until.get(i) != bounds.get(i):
                self._release(i)
        joined = [self._join(episodes[i]) for i in sorted(episodes.keys() - self._episodes.keys())]
        try:
            self._apply([result for result in joined if result is not None])
            self._apply(self._results())
            self._apply(self._draw())
        except EngineError:
            self._untold = self._progress(episodes, before)
            raise
        return self._progress(episodes, before)

    def _results(self) -> list[SessionResult]:
        """What environments have said; where all episodes wait for theirs, it waits, too."""
        if self.engine.busy or not self._acting:
            return self._sessions.results()
        with self._timed("waiting"):
            return self._sessions.results(WAIT_SECONDS)

    def _progress(self, episodes: Mapping[int, Episode], before: Mapping[int, int]) -> list[Progress]:
        """What was done for episodes that had drawn so many tokens before; those that have ended leave."""
        ended = [i for i, episode in self._episodes.items() if not episode.running]
        for i in ended:
            self._release(i)
        moved = [Progress(i, episodes[i].drawn - before[i], not episodes[i].running) for i in sorted(episodes)]
        return [progress for progress in moved if progress.drawn or progress.ended]

    @property
    def fingerprint(self) -> str:
        """Of its engine: what its bits depend on beside weights, contexts and seeds."""
        return self.engine.fingerprint

    @property
    def ids(self) -> set[int]:
        """Of the episodes that it has."""
        return set(self._episodes)

    def settled(self, episodes: Mapping[int, Episode]) -> list[Progress]:
        """What the last `advance` did for these episodes before it raised EngineError; [] where it did not."""
        moved, self._untold = self._untold, []
        return [progress for progress in moved if progress.id in episodes]

    def move(self, id: int, other: "Collector") -> None:
        """An episode goes on in another collector, with its session. Neither may be in use meanwhile."""
        episode = other._episodes[id] = self._episodes.pop(id)
        if id in self.engine.ids:
            self.engine.release(id)
        self._sessions.move(id, other._sessions)
        other.engine.resume(other._snapshot(episode))

    def close(self) -> None:
        """All episodes leave, and their sessions are closed."""
        for i in list(self._episodes):
            self._release(i)
        self._sessions.close_all()

    @property
    def _acting(self) -> bool:
        return any(episode.pending is not None for episode in self._episodes.values())

    def _join(self, episode: Episode) -> SessionResult | None:
        """Brings engine and session to where the episode is; the result of an instant session that was to act."""
        if not episode.running:
            raise ValueError(f"rollout {episode.id} is {episode.trajectory.status}; only a running one goes on")
        self._episodes[episode.id] = episode
        self.engine.resume(self._snapshot(episode))
        make, repeated, acting = environment(episode.task.environment).session, past_actions(episode), episode.pending
        begun = bool(repeated) or acting is not None
        self._sessions.open(episode.id, make, episode.task, episode.seed, repeated, begun=begun)
        return self._act(episode) if acting is not None else None

    def _act(self, episode: Episode) -> SessionResult | None:
        """The result of an instant session; of another one the host has it later."""
        return self._sessions.act(episode.id, pending_action(episode))

    def _draw(self) -> list[SessionResult]:
        """Adds to the episodes what the engine draws next; the results of turns that ended in instant sessions."""
        events: list[Event] = []
        until = time.monotonic() + READ_SECONDS
        while not any(map(_moves, events)) and self.engine.busy and time.monotonic() < until:
            events += self._engine_step()
            live, waiting = self.engine.occupied
            if waiting:
                self._use.live, self._use.wanted = self._use.live + live, self._use.wanted + self.slots
        results = []
        for event in sorted(events, key=lambda event: event.id):
            episode = self._episodes.get(event.id)
            if episode is None or not episode.running:  # an error of one that has left, or ended, since
                continue
            if event.experts is not None:
                event = dataclasses.replace(event, experts=event.experts.astype(self._expert_dtype))
            if event.finish_reason == "length" and self._is_bound(episode, len(event.tokens)):
                event = dataclasses.replace(event, finish_reason=None)
            append_generation(episode, event, self.reader)
            if episode.pending is not None and not self._is_held(episode):
                results.append(self._act(episode))
        return [result for result in results if result is not None]

    def _engine_step(self) -> list[Event]:
        try:
            with self._timed("generating"):
                return self.engine.step()
        except Exception as error:
            raise EngineError(error_text(error)) from error

    def _apply(self, results: Sequence[SessionResult]) -> None:
        """Adds results to the episodes. All observations are encoded together, on all threads."""
        prompts: dict[int, list[Piece]] = {}
        for result in results:
            if pieces := append_result(self._episodes[result.id], result, self.reader):
                prompts[result.id] = pieces
        encoded = encode_all(self.reader.tokenizer, list(prompts.values())) if prompts else ()
        for i, (tokens, _) in zip(prompts, encoded, strict=True):
            episode = self._episodes[i]
            append_observation(episode, tokens, self.engine.version, self.reader)
            if episode.running and not self._is_held(episode):
                self.engine.extend(i, tokens, self._tokens_left(episode))

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """A block whose seconds are added to a field of `Use`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            setattr(self._use, name, getattr(self._use, name) + time.perf_counter() - begun)

    def _is_held(self, episode: Episode) -> bool:
        """Whether it has reached its bound."""
        return len(episode.trajectory) >= self._until.get(episode.id, math.inf)

    def _is_bound(self, episode: Episode, drawn: int) -> bool:
        """Whether its bound stops it behind so many tokens more, and no limit of its own."""
        bound = len(episode.trajectory) + drawn >= self._until.get(episode.id, math.inf)
        return bound and tokens_left(episode, self.reader) > drawn

    def _tokens_left(self, episode: Episode) -> int:
        """How many tokens it may still draw."""
        bound = self._until.get(episode.id, math.inf)
        return int(min(tokens_left(episode, self.reader), bound - len(episode.trajectory)))

    def _release(self, id: int) -> None:
        """The episode leaves engine and sessions."""
        del self._episodes[id]
        if id in self.engine.ids:
            self.engine.release(id)
        self._sessions.close(id)

    def _snapshot(self, episode: Episode) -> Snapshot:
        """The request that goes on where the episode is; its id is its priority, so that all schedules are the same."""
        request = Request(
            episode.id,
            episode.trajectory.prompt_ids,
            episode.max_tokens,
            seed=episode.seed,
            temperature=self.temperature,
            stop_ids=tuple(sorted(self.reader.end_ids)),
            record_experts=self._expert_dtype is not None,
            priority=episode.id,
        )
        return Snapshot(
            request=request,
            tokens=tuple(episode.context),
            turn=episode.drawn,
            drawn=episode.drawn,
            limit=episode.drawn + self._tokens_left(episode),
            recorded=episode.trajectory.num_recorded,
            prompt_logps=(),
            finish_reason=None if episode.pending is None else "stop",
            fingerprint=self.engine.fingerprint,
        )


def _moves(event: Event) -> bool:
    """Whether it is more than experts of tokens that were read."""
    return bool(event.tokens or event.finish_reason)


def play(
    collector: Collector, episodes: Iterable[Episode], *, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Episode]:
    """Episodes to their ends under the weights that are loaded, in the order in which they end.

    As many are under way at a time as the collector has slots. It ends before where `stopped()` says so, which is asked
    between two pieces of decoding.
    """
    waiting, running = iter(episodes), {}
    while not stopped():
        running |= {episode.id: episode for episode in itertools.islice(waiting, collector.slots - len(running))}
        if not running:
            return
        ended = [progress.id for progress in collector.advance(running) if progress.ended]
        yield from [running.pop(i) for i in ended]
