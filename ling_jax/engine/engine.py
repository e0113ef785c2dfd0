"""The engine: requests in, events out, one step at a time (docs/engine.md)."""

import dataclasses
from collections.abc import Sequence, Set
from typing import Any

import jax
import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.engine.adjusted import draw_adjusted, draw_nothing
from ling_jax.engine.device import Device, Wanted
from ling_jax.engine.fingerprint import fingerprint
from ling_jax.engine.follow import SharedDevice
from ling_jax.engine.memory import Part, plan_memory
from ling_jax.engine.request import Event, Id, Request, Snapshot, check_in_flight, context_error, request_error
from ling_jax.engine.schedule import PIECE, Feed, Plan, lay_out_chunks, lay_out_parts, num_tiles
from ling_jax.engine.sequence import NOWHERE, empty_slots, of_snapshot, shares_of_parts, slot_row
from ling_jax.engine.sequence import Sequence as _Sequence
from ling_jax.engine.step import DRAW, HELD, HOLD, NOTHING, Outputs, Rows

EXACT_TILE = 64  # rows of a tile from which on a CPU gives a row the same bits whatever the others are
# (sequences of a part, tokens) of a program that reads; our choice: many short prompts, or a long one
CHUNKS = (8, 32), (1, 256)


class Engine:
    """Generates for many requests at a time, in a fixed number of slots.

        engine = Engine(config, slots=8, memory_bytes=memory_for(config, slots=8, max_tokens=512))
        engine.load(params, version=0)
        engine.submit(Request("a", prompt, max_new_tokens=80, seed=7, stop_ids=(end,)))
        while engine.busy:
            for event in engine.step(): …
        engine.release("a")

    A turn that has ended is parked: its state stays as long as there is room, and `extend` goes on from it. Not
    thread-safe: `engine.service` owns an engine in a thread of its own. Runs on the first device, or on a mesh.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        slots: int,
        memory_bytes: float,
        row_tile: int | None = None,
        prefill_tokens: int = 256,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """An engine without weights.

        `memory_bytes` is the budget for states and pages, `prefill_tokens` what a step reads at most beside drawing.
        With `row_tile` 64 every request has the bits that it has alone, whatever runs beside it; without, a tile has
        as many rows as there are slots, which is faster where these are few. On a `mesh` the slots are divided among
        its parts (data x expert); memory is of each device, tile and prefill of each part. Raises ValueError on sizes
        that do not fit each other, and on a mesh with `fsdp` or `context`.
        """
        if prefill_tokens < 1 or (row_tile is not None and row_tile < 1):
            raise ValueError(f"prefill_tokens is {prefill_tokens} and row_tile {row_tile}; both must be at least 1")
        self.config, self.plan = config, plan_memory(config, slots, memory_bytes, mesh)
        self._parts = [Part(self.plan, number) for number in range(self.plan.parts)]
        self._slots_of_part = of_part = slots // self.plan.parts
        self.exact, self.tile = row_tile is not None, row_tile or of_part
        self.prefill_tokens, self.version, self.steps = prefill_tokens, -1, 0
        self.fingerprint = fingerprint(config, self.tile, mesh)
        # Where bits need not be those of one program, steps that only draw have a shorter one.
        self._tiles = {False: num_tiles(of_part, self.tile, prefill_tokens)}
        if not self.exact:
            self._tiles[True] = num_tiles(of_part, self.tile, 0)
        self._prepared, self._next = -1, None  # versions that wait for `commit`, and until all turns have ended
        self._slots: list[_Sequence | None] = [None] * slots
        self._sequences: dict[Id, _Sequence] = {}
        self._waiting: list[_Sequence] = []
        self._parked: dict[Id, _Sequence] = {}  # the oldest first
        self._events: list[Event] = []  # to be given out with the next step
        self._arrivals, self.occupied = 0, (0, 0)  # of the last step: requests in slots, and those that waited
        self._table = empty_slots(slots, self.plan.max_pages)
        self.device = self._device(mesh)

    def _device(self, mesh: jax.sharding.Mesh | None) -> Device:
        if mesh is None or len({device.process_index for device in mesh.devices.flat}) == 1:
            return Device(self.config, self.plan, mesh)
        chunks = tuple((self.plan.parts * count, size) for count, size in CHUNKS)
        rows = max(self._tiles.values()), self.plan.parts * self.tile
        return SharedDevice(self.config, self.plan, mesh, slots=self._table, rows=rows, chunks=chunks)

    @property
    def leads(self) -> bool:
        """Whether this process schedules; of several processes the others call `follow.follow`."""
        return not isinstance(self.device, SharedDevice) or self.device.leads

    def close(self) -> None:
        """Of several processes, the first one's last call: the others stop following."""
        if isinstance(self.device, SharedDevice):
            self.device.close()

    @property
    def busy(self) -> bool:
        """Whether a step has something to do or to report."""
        return bool(self._waiting or self._events) or any(self._slots)

    @property
    def slots_in_use(self) -> int:
        """Slots that have a request; any thread may ask."""
        return sum(sequence is not None for sequence in self._slots)

    @property
    def ids(self) -> Set[Id]:
        """Of the requests that the engine has: a view."""
        return self._sequences.keys()

    def error_of(self, request: Request) -> str:
        """Why the engine cannot serve the request; "" where it can."""
        return request_error(request, self.config.vocab_size, self.plan.max_tokens)

    # What callers ask for.

    def load(self, params: Any, version: int, in_flight: str = "recompute") -> None:
        """`prepare` and `commit` in one."""
        check_in_flight(in_flight)
        self.prepare(params, version)
        self.commit(in_flight)

    def prepare(self, params: Any, version: int) -> str:
        """Copies new weights beside those in use, which stay, and returns their digest (`weights.digest`).

        May run in another thread than `step`, but not on several processes. Compiles nothing. Raises ValueError on
        weights of other names or shapes, with values that are not finite, or that a move changed.
        """
        digest = self.device.load(params, version)
        self._prepared = version
        return digest

    def adopt(self, other: "Engine") -> None:
        """Uses the weights of another engine on the same devices, without a copy; those that it has prepared, too."""
        self.device.adopt(other.device)
        self.version, self._prepared = other.version, other._prepared

    def commit(self, in_flight: str = "recompute") -> None:
        """Later steps draw from the prepared weights.

        `in_flight` says what becomes of requests under way: "recompute" reads their contexts again by the new weights,
        "keep" goes on from the old states, "drain" lets their turns end by the old weights first, and admits no other
        until then.
        """
        check_in_flight(in_flight)
        if in_flight == "drain" and self._drawing():
            self._next = self._prepared
            return
        self._swap(self._prepared, forget=in_flight != "keep")

    def warm_up(self) -> None:
        """Compiles every program, so that no request has to wait for that. Raises RuntimeError as `step`."""
        self._check_weights()
        for only_draws, count in self._tiles.items():
            rows = np.zeros((len(Rows._fields), count, self.plan.parts * self.tile), np.int32)
            self.device.run_tiles(rows, self._table, np.zeros(2, np.int32), only_draws, Wanted())
        for count, size in () if self.exact else CHUNKS:
            self.device.read_chunks(lay_out_chunks({}, self.plan.parts * count, size), self._table.table)
        draw_nothing(self.config)

    def submit(self, request: Request) -> None:
        """The request waits for a slot. One that cannot be served gets an event with `error` in the next step.

        Raises ValueError if the engine has a request of this id.
        """
        if request.id in self._sequences:
            raise ValueError(f"request {request.id!r} is in the engine; release it first")
        if error := self.error_of(request):
            return self._refuse(request.id, 0, error)
        request = dataclasses.replace(request, tokens=tuple(map(int, request.tokens)))  # the caller's may grow
        self._add(_Sequence(request, self._arrivals, list(request.tokens), request.max_new_tokens))

    def extend(self, id: Id, tokens: Sequence[int], max_new_tokens: int) -> None:
        """More context behind a turn that has ended, such as a tool's output; the request draws again.

        Its draws are counted on. Tokens that do not fit end the turn with an event of `error`. Raises ValueError
        if the turn has not ended.
        """
        sequence = self._of(id)
        if sequence.finish_reason is None:
            raise ValueError(f"request {id!r} is still drawing; extend it when its turn has ended")
        room = len(sequence.tokens), self.config.vocab_size, self.plan.max_tokens
        if error := context_error(tokens, max_new_tokens, *room):
            return self._refuse(id, sequence.drawn, error)
        self._parked.pop(id, None)
        sequence.tokens += map(int, tokens)
        sequence.turn, sequence.limit = sequence.drawn, sequence.drawn + max_new_tokens
        sequence.finish_reason = None
        self._waiting.append(sequence)

    def cancel(self, id: Id) -> None:
        """The request leaves; its last event says so."""
        sequence = self._of(id)
        self._events.append(Event(id, sequence.drawn, version=self.version, finish_reason="cancelled"))
        self.release(id)

    def release(self, id: Id) -> None:
        """The request leaves, whatever it is doing."""
        sequence = self._of(id)
        del self._sequences[id]
        self._parked.pop(id, None)
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        self._forget(sequence)

    def pause(self, id: Id) -> Snapshot:
        """The request leaves and can be resumed, here or in an engine of the same fingerprint."""
        sequence = self._of(id)
        self.release(id)
        return sequence.snapshot(self.fingerprint)

    def resume(self, snapshot: Snapshot) -> None:
        """The request goes on as if it had never left: its context is read again.

        Raises ValueError on a snapshot of another fingerprint, or where the engine has a request of this id.
        """
        if snapshot.fingerprint != self.fingerprint:
            raise ValueError(
                f"the snapshot of request {snapshot.request.id!r} is of engine {snapshot.fingerprint}; this one is "
                f"{self.fingerprint}: another model, machine, JAX version or row_tile, whose bits may differ"
            )
        if snapshot.request.id in self._sequences:
            raise ValueError(f"request {snapshot.request.id!r} is in the engine; release it first")
        request, room = snapshot.request, (0, self.config.vocab_size, self.plan.max_tokens)
        if error := self.error_of(request) or context_error(snapshot.tokens, snapshot.limit - snapshot.drawn, *room):
            return self._refuse(request.id, snapshot.drawn, error)
        self._add(of_snapshot(snapshot, self._arrivals))

    # One step.

    def step(self) -> list[Event]:
        """Events of what was read and drawn: up to 8 tokens of every request in a slot.

        Raises RuntimeError before weights are loaded.
        """
        self._check_weights()
        if self._next is not None and not self._drawing():
            self._swap(self._next, forget=True)
        events, self._events = self._events, []
        self._admit()
        self.steps, self.occupied = self.steps + 1, (sum(map(bool, self._slots)), len(self._waiting))
        feeds = self._feeds()
        if feeds:
            events += self._run(feeds)
        return events

    def _refuse(self, id: Id, drawn: int, error: str) -> None:
        self._events.append(Event(id, drawn, version=self.version, finish_reason="error", error=error))

    def _check_weights(self) -> None:
        if not self.device.has_weights:
            raise RuntimeError("the engine has no weights; call load(params, version) first")

    def _run(self, feeds: list[tuple[_Sequence, Feed]]) -> list[Event]:
        only_draws = not self.exact and all(len(f.tokens) == 1 and f.targets[0] == DRAW for _, f in feeds)
        size = self._slots_of_part, self.plan.parts, self.tile, self._tiles[only_draws]
        plan = lay_out_parts([feed for _, feed in feeds], *size)
        wanted = Wanted(
            experts=any(s.request.record_experts for s, _ in feeds),
            held=not only_draws and any(s.request.adjusted for s, _ in feeds),
        )
        tiles = np.array((plan.count, plan.reading), np.int32)
        outputs = self.device.run_tiles(plan.rows, self._table, tiles, only_draws, wanted)
        # All at once: a step has little time for each request.
        drawn = [x.reshape(-1)[plan.drawn.T].tolist() for x in (outputs.token, outputs.logp)]
        events = []
        for number, (sequence, feed) in enumerate(feeds):
            event = self._event(sequence, feed, plan, number, outputs, *(x[number] for x in drawn))
            if event.tokens or event.finish_reason or event.prompt_logps or event.experts is not None:
                events.append(event)
                sequence.cached = 0
        return events

    def _event(
        self,
        sequence: _Sequence,
        feed: Feed,
        plan: Plan,
        number: int,
        outputs: Outputs,
        tokens: list[int],
        logps: list[float],
    ) -> Event:
        """What a feed gave, after the sequence has taken it; `tokens` [PIECE] are -1 behind a stop token."""
        fed, top, experts, prompt_logps = len(feed.tokens), (), None, ()
        if feed.targets[-1] <= HOLD:
            held = outputs.held[HOLD - feed.targets[-1]]
            total = outputs.logp.reshape(-1)[plan.drawn[0, number]]
            tokens, logps, top, error = draw_adjusted(sequence, held, total)
            if error:
                return self._failed(sequence, error)
        else:
            tokens = tokens[: feed.draws]
            if -1 in tokens:
                tokens = tokens[: tokens.index(-1)]
        read = slice(plan.first[number], plan.first[number] + fed)
        if outputs.experts is not None and sequence.request.record_experts:
            rows = [*plan.read[read], *plan.drawn[1 : len(tokens), number]]
            experts = sequence.new_experts(feed, outputs.experts, rows)
        if sequence.scored:
            wanted = [i for i, target in enumerate(feed.targets) if target >= 0]
            sequence.prompt_logps += outputs.logp.reshape(-1)[plan.read[read][wanted]].tolist()
            prompt_logps = () if sequence.scored else tuple(sequence.prompt_logps)
        return self._taken(sequence, fed, tokens, logps[: len(tokens)], top, prompt_logps, experts)

    def _taken(self, sequence: _Sequence, fed: int, tokens, logps, top, prompt_logps, experts) -> Event:
        """The event of a sequence that has read `fed` tokens and drawn these; all but the last are read, too."""
        first = sequence.drawn
        sequence.take(fed, tokens)
        stopped = bool(tokens) and tokens[-1] in sequence.request.stop_ids
        if stopped or sequence.done:
            sequence.finish_reason = "stop" if stopped else "length"
            self._park(sequence)
        return Event(
            sequence.id, first, tuple(tokens), tuple(logps), self.version, sequence.finish_reason, top, prompt_logps,
            sequence.cached, experts,
        )  # fmt: skip

    def _failed(self, sequence: _Sequence, error: str) -> Event:
        self.release(sequence.id)
        return Event(sequence.id, sequence.drawn, version=self.version, finish_reason="error", error=error)

    # Who reads what.

    def _feeds(self) -> list[tuple[_Sequence, Feed]]:
        """The feeds of this step, the most urgent first; reads chunks on the way where tiles need not be exact."""
        if not self.exact:
            self._read_chunks()
        active = self._active()
        reading = [s for s in active if s.unread > 1 and (self.exact or not s.in_chunks)]
        shares = shares_of_parts(reading, self.prefill_tokens) if reading else {}
        adjusted = sorted((s for s in active if s.request.adjusted), key=lambda s: (s.last_step, s.order))
        holders = {sequence.id: HOLD - place for place, sequence in enumerate(adjusted[:HELD])}
        feeds = []
        for sequence in active:
            if sequence.slot == NOWHERE:  # it had to give up its place to a more urgent one
                continue
            fed, target = shares.get(sequence.id, int(sequence.unread == 1)), DRAW
            if fed == sequence.unread and sequence.request.adjusted:
                target = holders.get(sequence.id, NOTHING)
                fed -= target == NOTHING  # another request's logits go to the host in this step
            draws = (
                min(PIECE if target == DRAW else 1, sequence.limit - sequence.drawn) if fed == sequence.unread else 0
            )
            if fed and self._make_room(sequence, sequence.read + fed + max(draws - 1, 0)):
                feeds.append((sequence, sequence.feed(fed, draws, target)))
                sequence.last_step = self.steps
        return [(sequence, feed) for sequence, feed in feeds if sequence.slot != NOWHERE]

    def _active(self) -> list[_Sequence]:
        """Sequences in slots, the most urgent first."""
        return sorted((sequence for sequence in self._slots if sequence is not None), key=lambda s: s.order)

    def _read_chunks(self) -> None:
        """Reads in chunks what stands before the last token of each context: short ones first, the oldest at times."""
        left = self.prefill_tokens if any(s is not None and s.unread > 1 for s in self._slots) else 0
        while left > 0 and (reading := [s for s in self._active() if s.unread > 1 and s.in_chunks]):
            first = reading[0] if self.steps % 4 == 0 else None
            shares = shares_of_parts(reading, left)
            reading = sorted((s for s in reading if shares[s.id]), key=lambda s: (s is not first, s.unread, s.order))
            count, size = CHUNKS[reading[0].unread - 1 > CHUNKS[0][1]]
            self._read_chunk(reading, count, size)
            left -= count * size

    def _read_chunk(self, reading: list[_Sequence], count: int, size: int) -> None:
        """Reads up to `size` tokens of the first `count` sequences of each part."""
        rows, pieces = {}, {}
        for part in self._parts:
            of_part = [s for s in reading if s.part == part.number][:count]
            rows |= {part.number * count + row: sequence for row, sequence in enumerate(of_part)}
        for sequence in (s for s in reading if s in rows.values()):  # the most urgent first
            if sequence.slot != NOWHERE:
                self._make_room(sequence, sequence.read + min(sequence.unread - 1, size))
        for row, s in rows.items():
            if s.slot != NOWHERE:
                pieces[row] = s.tokens[s.read : s.read + min(s.unread - 1, size)], s.read, s.slot, s.state
        self.device.read_chunks(lay_out_chunks(pieces, self.plan.parts * count, size), self._table.table)
        for row, (tokens, *_) in pieces.items():
            rows[row].read += len(tokens)

    # Where things lie.

    def _admit(self) -> None:
        """Gives free slots to those that wait, the most urgent first; while weights wait, to turns that have begun.

        One with a state gets a slot of its part. A part without room for its most urgent request admits no other.
        """
        waiting = [s for s in self._waiting if self._next is None or s.drawn > s.turn]
        free = {slot // self._slots_of_part for slot, sequence in enumerate(self._slots) if sequence is None}
        for sequence in sorted(waiting, key=lambda s: s.order):
            if not free:
                return
            wanted = free if sequence.state == NOWHERE else free & {sequence.part}
            lacking = sequence.pages_for(len(sequence.tokens) + 1)
            ranked = sorted((self._parts[number] for number in wanted), key=lambda part: part.rank(lacking))
            part = next((part for part in ranked if self._clear(part, sequence, lacking)), None)
            if part is None:
                free -= wanted
                continue
            self._waiting.remove(sequence)
            self._seat(sequence, part)
            if all(self._slots[part.slots.start : part.slots.stop]):
                free.remove(part.number)

    def _clear(self, part: Part, sequence: _Sequence, lacking: int) -> bool:
        """Whether the part has a state and `lacking` pages for the sequence, once others are forgotten for it."""
        kept = self._evictable(part, sequence)
        has_state = sequence.state != NOWHERE or len(part.states) or kept
        if not has_state or len(part.pages) + sum(len(s.pages) for s in kept) < lacking:
            return False
        while kept and (len(part.pages) < lacking or (sequence.state == NOWHERE and not len(part.states))):
            self._forget(kept.pop(0))
        return True

    def _drawing(self) -> bool:
        """Whether a turn is in a slot, or gave one up in the middle."""
        return any(self._slots) or any(s.drawn > s.turn for s in self._waiting)

    def _seat(self, sequence: _Sequence, part: Part) -> None:
        sequence.part = part.number
        sequence.slot = self._slots.index(None, part.slots.start)
        self._slots[sequence.slot] = sequence
        if sequence.state == NOWHERE:
            sequence.state = part.states.take()
        sequence.cached = sequence.read
        pages = self._table.table[sequence.slot]
        pages[:] = 0  # none
        pages[: len(sequence.pages)] = sequence.pages
        self._table.integers[sequence.slot], self._table.floats[sequence.slot] = slot_row(sequence)

    def _make_room(self, sequence: _Sequence, tokens: int) -> bool:
        """Whether the sequence has pages for so many tokens; takes them from parked and from less urgent ones."""
        lacking, free = sequence.pages_for(tokens), self._parts[sequence.part].pages
        if not lacking:
            return True
        while len(free) < lacking and not self._evict(sequence):
            of_part = (self._slots[slot] for slot in self._parts[sequence.part].slots)
            others = [s for s in of_part if s is not None and s.order > sequence.order]
            if not others:
                break
            self._unseat(max(others, key=lambda s: s.order))
        if len(free) < lacking:
            self._unseat(sequence)
            return False
        pages, held = [free.take() for _ in range(lacking)], len(sequence.pages)
        self._table.table[sequence.slot, held : held + lacking] = pages
        sequence.pages += pages
        return True

    def _unseat(self, sequence: _Sequence) -> None:
        """Back to the queue; its context will be read again."""
        self._forget(sequence)
        self._waiting.append(sequence)

    def _park(self, sequence: _Sequence) -> None:
        self._slots[sequence.slot] = None
        sequence.slot = NOWHERE
        self._parked[sequence.id] = sequence

    def _evictable(self, part: Part, urgent: _Sequence) -> list[_Sequence]:
        """Parked sequences of the part, the one that ended first in front, then less urgent ones that wait."""
        waiting = sorted((s for s in self._waiting if s.order > urgent.order), key=lambda s: s.order, reverse=True)
        return [s for s in (*self._parked.values(), *waiting) if s.state != NOWHERE and s.part == part.number]

    def _evict(self, urgent: _Sequence) -> bool:
        """Forgets the first that is evictable in its part; False: there is none."""
        kept = self._evictable(self._parts[urgent.part], urgent)
        if kept:
            self._forget(kept[0])
        return bool(kept)

    def _forget(self, sequence: _Sequence) -> None:
        """Its slot, state and pages are free again, and nothing of its context is read."""
        if sequence.slot != NOWHERE:
            self._slots[sequence.slot] = None
        if sequence.state != NOWHERE:
            self._parts[sequence.part].states.give_back([sequence.state])
        self._parts[sequence.part].pages.give_back(sequence.pages)
        sequence.leave()

    def _swap(self, version: int, *, forget: bool) -> None:
        self.device.swap()
        self.version, self._next = version, None
        for sequence in self._sequences.values() if forget else ():
            if sequence.slot == NOWHERE:
                self._forget(sequence)
            sequence.forget()

    def _add(self, sequence: _Sequence) -> None:
        self._arrivals += 1
        self._sequences[sequence.id] = sequence
        if sequence.finish_reason is None:
            self._waiting.append(sequence)

    def _of(self, id: Id) -> _Sequence:
        if id not in self._sequences:
            raise ValueError(f"the engine has no request {id!r}: it was released, or never submitted")
        return self._sequences[id]
