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
from ling_jax.rl.trajectory import Trajectory

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


class Span(NamedTuple):
    """When a rollout got its tokens of one weight version."""

    rollout: int
    version: int
    start: float  # seconds since the epoch, as the caller's clock has them
    stop: float
    tokens: int


class RolloutBuffer:
    """Episodes by rollout. A version is: top_up, advance while `ledger.is_open`, take, move_on."""

    def __init__(self, limits: Limits, draw: Draw, emit: Emit):
        self.ledger = Ledger(limits)
        self.episodes: dict[int, Episode] = {}  # of open prompts, those thrown away left out
        self.recent: list[Left] = []  # the last WINDOW rollouts that left
        self.discarded = 0  # with the last version
        self.ended: list[str] = []  # statuses of the rollouts that ended in this version
        self._draw, self._emit = draw, emit
        self._spans: dict[int, Span] = {}  # by rollout, in this version

    @property
    def version(self) -> int:
        """Of the weights that generate now."""
        return self.ledger.version

    @property
    def running(self) -> dict[int, Episode]:
        """Those that generate or wait for their environments."""
        return {i: self.episodes[i] for i in self.ledger.running}

    def advance(self, moved: Sequence[Progress], start: float = 0.0, stop: float = 0.0) -> None:
        """After a piece of decoding, from `start` to `stop`, which moved these rollouts on."""
        for i, drawn, _ in moved:
            if drawn:
                span = self._spans.get(i, Span(i, self.version, start, stop, 0))
                self._spans[i] = span._replace(stop=stop, tokens=span.tokens + drawn)
                self.ledger.apply(Generated(i, drawn))
        for i, _, ended in moved:
            if ended:
                self.ended.append(self.episodes[i].trajectory.status)
                self.ledger.apply(Ended(i, rewarded=not self.episodes[i].failed))
        self.top_up()

    @property
    def batch(self) -> list[Group]:
        """The groups that `take` would take now, older prompts first."""
        return [self.group(prompt) for prompt in self.ledger.batch]

    def group(self, prompt: int) -> Group:
        """All answers to a prompt that has not left."""
        return Group(prompt, tuple(map(self.episodes.get, self._ids(prompt))))

    def take(self, prompts: Sequence[int], unscored: Sequence[int] = ()) -> None:
        """The groups of a batch leave; the rollouts `unscored` were not learnt from."""
        decided = self.ledger.apply(BatchTaken(tuple(prompts), tuple(unscored)))
        left = {}
        for prompt in (*decided.taken, *decided.broken):
            left |= {i: self.episodes.pop(i) for i in self._ids(prompt) if i in self.episodes}
        rollouts = {str(i): record_of(episode.trajectory) for i, episode in left.items()}
        self._emit("taken", {"prompts": list(decided.taken), "broken": list(decided.broken), "rollouts": rollouts})

    def move_on(self, weights: str = "") -> list[Span]:
        """The weights moved on to those of this digest: what has grown too old leaves.

        Returns the spans of the version that is over.
        """
        spans, self._spans, self.ended = sorted(self._spans.values()), {}, []
        discarded = self.ledger.apply(NewVersion()).discarded
        runs = {str(i): runs_of(self.episodes.pop(i).trajectory) for i in discarded}
        self._emit("version", {"version": self.version, "weights": weights, "discarded": runs})
        self.discarded = len(discarded)
        self.recent = [*self.recent, *self.ledger.take_left()][-WINDOW:]
        return spans

    def to_json(self) -> dict[str, Any]:
        """At any moment between two pieces of decoding; `restore` is the inverse."""
        return {
            "ledger": self.ledger.to_json(),
            "recent": [list(left) for left in self.recent],
            "ended": self.ended,
            "spans": [list(span) for span in self._spans.values()],
            "episodes": [self.episodes[i].to_json() for i in sorted(self.episodes)],
        }

    def restore(self, record: Mapping[str, Any], task_of: Callable[[int], Any]) -> None:
        """What `to_json` gave. `task_of(number)` is the task that an episode was asked for."""
        self.ledger = Ledger.from_json(record["ledger"], self.ledger.limits)
        self.recent = [Left(*left) for left in record["recent"]]
        self.ended = list(record["ended"])
        self._spans = {span.rollout: span for span in (Span(*fields) for fields in record["spans"])}
        self.episodes = {e["id"]: restore_episode(e, task_of(e["task"])) for e in record["episodes"]}

    def top_up(self) -> None:
        """Draws new prompts, so that no slot is empty that may be used."""
        while count := self.ledger.wanted:
            first = self.ledger.prompts
            for episode in self._draw(first, count):
                self.episodes[episode.id] = episode
            self.ledger.apply(Drawn(tuple(range(first, first + count))))

    def _ids(self, prompt: int) -> range:
        return ids_of(prompt, self.ledger.limits.group_size)


def ids_of(prompt: int, group_size: int) -> range:
    """The rollouts of a prompt."""
    return range(prompt * group_size, (prompt + 1) * group_size)


def runs_of(trajectory: Trajectory) -> list[list[int]]:
    """[[weight version, tokens], …] of a completion, observations included."""
    return [list(run) for run in trajectory.runs]


def record_of(trajectory: Trajectory) -> dict[str, Any]:
    """What the log keeps of a rollout: its runs, its status, and a digest of its tokens and log-probs."""
    content = trajectory.completion_ids.tobytes() + trajectory.behaviour_logps.tobytes()
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return {"runs": runs_of(trajectory), "status": trajectory.status, "tokens": digest}
