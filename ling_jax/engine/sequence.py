"""A request inside the engine: its context, what of it was read, and where that lies."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from ling_jax.engine.request import MAX_STOP_IDS, Id, Request, Snapshot
from ling_jax.engine.schedule import Feed
from ling_jax.engine.step import FLOATS, INTEGERS, NOTHING, Slots
from ling_jax.model.token_info import PAGE_SIZE

NOWHERE = -1


@dataclasses.dataclass(eq=False)
class Sequence:
    """Mutable, and the engine's own."""

    request: Request
    arrival: int
    tokens: list[int]  # the context: prompt, drawn tokens, extensions
    limit: int  # tokens that may have been drawn at the end of this turn
    drawn: int = 0
    read: int = 0  # tokens that states and pages hold
    part: int = 0  # of the mesh, in which its slot, state and pages are
    slot: int = NOWHERE
    state: int = NOWHERE
    pages: list[int] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None  # of the turn; None: it goes on
    turn: int = 0  # number of drawn tokens before this turn
    cached: int = 0  # tokens of the turn's context that were not read for it, until the first event says so
    prompt_logps: list[float] = dataclasses.field(default_factory=list)
    recorded: int = 0  # tokens whose experts were given out
    last_step: int = 0  # of the engine, in which it took part

    @property
    def id(self) -> Id:
        """The request's."""
        return self.request.id

    @property
    def order(self) -> tuple[int, int]:
        """Lower goes first."""
        return self.request.priority, self.arrival

    @property
    def unread(self) -> int:
        """Tokens of the context that have to be read before the next draw; the last one draws."""
        return len(self.tokens) - self.read

    @property
    def done(self) -> bool:
        """Whether the turn has all its tokens; what drew the last one need not be read, what drew none is."""
        return self.drawn >= self.limit and not self.scored and self.unread <= (self.limit > self.turn)

    @property
    def scored(self) -> bool:
        """Whether its prompt's log-probs are still wanted."""
        return self.request.prompt_logprobs and len(self.prompt_logps) < len(self.request.tokens) - 1

    @property
    def in_chunks(self) -> bool:
        """Whether it may be read many tokens at a time: nothing is wanted of each."""
        return not self.scored and not self.request.record_experts

    def take(self, fed: int, tokens: list[int]) -> None:
        """So many tokens were read, and these drawn; all but the last one of them are read, too."""
        self.read += fed + max(len(tokens) - 1, 0)
        self.tokens += tokens
        self.drawn += len(tokens)

    def leave(self) -> None:
        """It has no slot, state and pages any more."""
        self.slot = self.state = NOWHERE
        self.pages = []
        self.forget()

    def forget(self) -> None:
        """Nothing of the context is read."""
        self.read = self.cached = 0
        if self.scored:
            self.prompt_logps = []

    def feed(self, count: int, draws: int, last: int) -> Feed:
        """The next `count` tokens, of which the last one has the target `last` where the request draws."""
        tokens = self.tokens[self.read : self.read + count]
        targets = [NOTHING] * count
        if self.scored:
            stop = min(self.read + count, len(self.request.tokens) - 1)
            targets[: stop - self.read] = self.tokens[self.read + 1 : stop + 1]
        if draws:
            targets[-1] = last
        return Feed(self.slot, tokens, self.read, targets, self.drawn, draws)

    def new_experts(self, feed: Feed, experts_MNLk: np.ndarray, rows: list[int]) -> np.ndarray | None:
        """[n, L, k] of the tokens of these rows, except those that were given out before they were read again."""
        flat = experts_MNLk.reshape(-1, *experts_MNLk.shape[2:])
        new = flat[rows[max(self.recorded - feed.position, 0) :]].astype(np.uint16)
        self.recorded = max(self.recorded, feed.position + len(rows))
        return new if len(new) else None

    def snapshot(self, fingerprint: str) -> Snapshot:
        """It as a value, to be resumed by an engine of this fingerprint."""
        return Snapshot(
            request=self.request,
            tokens=tuple(self.tokens),
            turn=self.turn,
            drawn=self.drawn,
            limit=self.limit,
            recorded=self.recorded,
            prompt_logps=() if self.scored else tuple(self.prompt_logps),
            finish_reason=self.finish_reason,
            fingerprint=fingerprint,
        )

    def pages_for(self, tokens: int) -> int:
        """Pages that it lacks to hold so many tokens."""
        return max(0, -(-tokens // PAGE_SIZE) - len(self.pages))


def of_snapshot(snapshot: Snapshot, arrival: int) -> Sequence:
    """The sequence of `Sequence.snapshot`, of whose context nothing is read."""
    return Sequence(
        snapshot.request,
        arrival,
        list(snapshot.tokens),
        snapshot.limit,
        turn=snapshot.turn,
        drawn=snapshot.drawn,
        recorded=snapshot.recorded,
        prompt_logps=list(snapshot.prompt_logps),
        finish_reason=snapshot.finish_reason,
    )


def shares_of_parts(sequences: Iterable[Sequence], budget: int) -> dict[Id, int]:
    """`prefill_shares` of the sequences of each part, with a budget of its own."""
    parts: dict[int, list[Sequence]] = {}
    for sequence in sequences:
        parts.setdefault(sequence.part, []).append(sequence)
    return {id: share for group in parts.values() for id, share in prefill_shares(group, budget).items()}


def prefill_shares(sequences: Iterable[Sequence], budget: int) -> dict[Id, int]:
    """{id: tokens to be read in this step} of those that have more than one; 0 where the budget does not reach.

    Of the most urgent priority the oldest gets a quarter of the budget, so that it always goes on; then short ones go
    first, so that a long prompt delays nobody by more than a step. Sequences with one token are not limited.
    """
    left, shares = budget, {}
    reading = sorted((s for s in sequences if s.unread > 1), key=lambda s: s.order)
    for sequence in reading[:1]:
        shares[sequence.id] = min(sequence.unread, -(-budget // 4))
        left -= shares[sequence.id]
    for sequence in sorted(reading, key=lambda s: (s.request.priority, s.unread, s.arrival)):
        share = min(sequence.unread - shares.get(sequence.id, 0), left)
        shares[sequence.id] = shares.get(sequence.id, 0) + share
        left -= share
    return shares


def empty_slots(slots: int, pages: int) -> Slots:
    """Numpy arrays for that many slots, whose sequences have at most that many pages."""
    return Slots(
        table=np.zeros((slots, pages), np.int32),
        integers=np.zeros((slots, 1 + len(INTEGERS) + MAX_STOP_IDS), np.int32),
        floats=np.zeros((slots, len(FLOATS)), np.float32),
    )


def slot_row(sequence: Sequence) -> tuple[list[int], list[float]]:
    """The row of its slot in `step.Slots`: (integers, floats)."""
    r = sequence.request
    seed = r.seed - (r.seed >> 31 << 32)  # the same bits as an int32
    stop = [*r.stop_ids, *[-1] * (MAX_STOP_IDS - len(r.stop_ids))]
    integers = [sequence.state, seed, r.top_k, sequence.turn + r.min_new_tokens, *stop]
    return integers, [r.temperature, r.top_p, r.min_p]
