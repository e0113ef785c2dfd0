"""Rollouts under way: the episodes behind the ledger's numbers, and the log of what becomes of them.

The buffer is deterministic and passes every decision to `emit`, which writes the log. A run can be stored by `to_json`
after any piece of decoding, and continues from it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ling_jax.rl.collector import Progress
from ling_jax.rl.episode import Episode, restore_episode
from ling_jax.rl.ledger import BatchTaken, Drawn, Ended, Generated, Ledger, Left, Limits, NewVersion

Draw = Callable[[int, int], Sequence[Episode]]  # (first prompt, count) -> the episodes of these prompts, in order
Emit = Callable[[str, dict[str, Any]], None]  # (kind, record)
WINDOW = 1024  # rollouts that have left, over which shares are counted; our choice


class Group(NamedTuple):
    """All answers to one prompt, in order; None for one that was thrown away."""

    prompt: int
    episodes: tuple[Episode | None, ...]

    @property
    def valid(self) -> list[bool]:
        """Which have a reward: neither thrown away nor broken."""
        return [episode is not None and not episode.failed for episode in self.episodes]

    @property
    def paid(self) -> list[Episode]:
        """Those that have a reward."""
        return [episode for episode, valid in zip(self.episodes, self.valid, strict=True) if valid]


class RolloutBuffer:
    """Episodes by rollout. A version is: begin, advance while `ledger.is_open`, take, move_on."""

    def __init__(self, limits: Limits, draw: Draw, emit: Emit):
        self.ledger = Ledger(limits)
        self.episodes: dict[int, Episode] = {}  # of open prompts, those thrown away left out
        self.recent: list[Left] = []  # the last WINDOW rollouts that left
        self.discarded = 0  # with the last version
        self._draw, self._emit = draw, emit
        self.pieces = 0  # of decoding in which some rollout went on, in this version
        self._spans: dict[int, list[int]] = {}  # in this version: rollout -> [first piece, behind the last, tokens]
        self._ended: list[int] = []  # in this version
        self._arrived: dict[int, list[int]] = {}  # piece -> rollouts whose environments answered before it

    @property
    def version(self) -> int:
        """Of the weights that generate now."""
        return self.ledger.version

    @property
    def running(self) -> dict[int, Episode]:
        """Those that generate or wait for their environments."""
        return {i: self.episodes[i] for i in self.ledger.running}

    def advance(self, moved: Sequence[Progress], arrived: Sequence[int] = ()) -> None:
        """After a piece of decoding, which moved these rollouts on; the environments of `arrived` answered before."""
        if arrived:
            self._arrived[self.pieces] = sorted([*self._arrived.get(self.pieces, ()), *arrived])
        if not moved:
            return
        for i, drawn, _ in moved:
            if drawn:
                span = self._spans.setdefault(i, [self.pieces, 0, 0])
                span[1:] = self.pieces + 1, span[2] + drawn
                self.ledger.apply(Generated(i, drawn))
        for i, _, ended in moved:
            if ended:
                self._end(i)
        self.pieces += 1
        self.top_up()

    @property
    def batch(self) -> list[Group]:
        """The groups that `take` would take now, older prompts first."""
        return [Group(prompt, tuple(map(self.episodes.get, self._ids(prompt)))) for prompt in self.ledger.batch]

    def take(self, unscored: Sequence[int] = ()) -> None:
        """The groups of this version's batch leave; the rollouts `unscored` were not learnt from."""
        self._emit_generated()
        decided = self.ledger.apply(BatchTaken(tuple(unscored)))
        self._emit("taken", {"prompts": list(decided.taken), "broken": list(decided.broken)})
        for prompt in (*decided.taken, *decided.broken):
            for i in self._ids(prompt):
                self.episodes.pop(i, None)

    def move_on(self) -> None:
        """The weights moved on: what has grown too old leaves."""
        discarded = self.ledger.apply(NewVersion()).discarded
        self._emit("version", {"version": self.version, "discarded": list(discarded)})
        self.discarded = len(discarded)
        for i in discarded:
            del self.episodes[i]
        self.recent = [*self.recent, *self.ledger.take_left()][-WINDOW:]
        self.pieces, self._spans, self._ended, self._arrived = 0, {}, [], {}

    def to_json(self) -> dict[str, Any]:
        """At any moment between two pieces of decoding; `restore` is the inverse."""
        return {
            "ledger": self.ledger.to_json(),
            "recent": [list(left) for left in self.recent],
            "pieces": self.pieces,
            "spans": [[i, *span] for i, span in self._spans.items()],
            "ended": self._ended,
            "arrived": list(self._arrived.items()),
            "episodes": [self.episodes[i].to_json() for i in sorted(self.episodes)],
        }

    def restore(self, record: Mapping[str, Any], task_of: Callable[[int], Any]) -> None:
        """What `to_json` gave. `task_of(number)` is the task that an episode was asked for."""
        self.ledger = Ledger.from_json(record["ledger"], self.ledger.limits)
        self.recent = [Left(*left) for left in record["recent"]]
        self.pieces, self._ended = record["pieces"], list(record["ended"])
        self._spans = {i: span for i, *span in record["spans"]}
        self._arrived = dict(record["arrived"])
        self.episodes = {e["id"]: restore_episode(e, task_of(e["task"])) for e in record["episodes"]}

    def _ids(self, prompt: int) -> range:
        size = self.ledger.limits.group_size
        return range(prompt * size, (prompt + 1) * size)

    def _end(self, i: int) -> None:
        self._ended.append(i)
        self.ledger.apply(Ended(i, rewarded=not self.episodes[i].failed))

    def _emit_generated(self) -> None:
        """One record a version: which pieces each rollout ran in, its tokens and status, and a digest of all tokens."""
        tokens, rollouts = hashlib.blake2b(digest_size=16), {}
        for i in sorted({*self._spans, *self._ended}):
            episode, span = self.episodes[i], self._spans.get(i, [self.pieces, self.pieces, 0])
            trajectory = episode.trajectory
            start = len(trajectory) - sum(run.count for run in trajectory.runs if run.version == self.version)
            tokens.update(trajectory.completion_ids[start:].tobytes() + trajectory.behaviour_logps[start:].tobytes())
            rollouts[str(i)] = [*span, trajectory.status]
        record = {"version": self.version, "pieces": self.pieces, "rollouts": rollouts, "tokens": tokens.hexdigest()}
        arrived = {str(piece): ids for piece, ids in self._arrived.items()}
        self._emit("generated", record | ({"arrived": arrived} if arrived else {}))

    def top_up(self) -> None:
        """Draws new prompts, so that no slot is empty that may be used."""
        while count := self.ledger.wanted:
            first = self.ledger.prompts
            for episode in self._draw(first, count):
                self.episodes[episode.id] = episode
            self.ledger.apply(Drawn(tuple(range(first, first + count))))
