"""Which rollouts start, go on, wait, are used and thrown away: the token budget and the staleness bound side by side.

Deterministic, and every decision is told to `emit`, which makes the log. Rollout i is answer i % group_size to prompt
i // group_size. All that has to last from one optimisation step to the next is in `to_json`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ling_jax.envs import Task
from ling_jax.rl import staleness, token_budget
from ling_jax.rl.collector import Progress
from ling_jax.rl.episode import Episode, restore_episode
from ling_jax.rl.token_budget import Budget, Pool, Rollout

Draw = Callable[[int, int], Sequence[Episode]]  # (first prompt, count) -> the episodes of these prompts, in order
Emit = Callable[[str, dict[str, Any]], None]  # (kind, record)


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


class Rollouts:
    """All that is under way. One step of the loop is: begin, advance while `is_open`, harvest, close."""

    def __init__(self, budget: Budget, limits: staleness.Limits, group_size: int, draw: Draw, emit: Emit):
        self.budget, self.limits, self.group_size = budget, limits, group_size
        self.pool, self.state = Pool(), staleness.State()
        self.prompts = 0  # drawn so far
        self.open: list[int] = []  # prompts whose group was not used yet
        self.episodes: dict[int, Episode] = {}  # of open prompts
        self.gone: set[int] = set()  # of open prompts: purged or too stale
        self._draw, self._emit = draw, emit
        self._drew: set[int] = set()  # rollouts that these weights have gone on with
        self._logged: dict[int, int] = {}  # tokens of rollouts that are in the log's digests

    @property
    def version(self) -> int:
        """Of the weights that generate now."""
        return self.pool.version

    @property
    def running(self) -> dict[int, Episode]:
        return {rollout.id: self.episodes[rollout.id] for rollout in self.pool.active}

    @property
    def is_open(self) -> bool:
        """Whether generation goes on: the budget says so, or no group is complete yet.

        One whose answers were all thrown away does not count; one whose answers all broke does, or a broken world
        would never be noticed.
        """
        complete = any(any(group.episodes) for group in self._complete_groups())
        return token_budget.is_open(self.pool, self.budget) or (bool(self.pool.active) and not complete)

    def begin(self) -> None:
        """A new iteration: rollouts that were paused too often leave, new ones come."""
        self._drew = set()
        self._purge([r.id for r in self.pool.active if r.retention == self.budget.max_retention])
        self._top_up()
        self.pool = token_budget.begin(self.pool, self.budget)

    def advance(self, moved: Sequence[Progress]) -> None:
        """After a slice of generation moved episodes on; of none, nothing is to be told."""
        if not moved:
            return
        progress, tokens = {i: (count, ended) for i, count, ended in moved}, hashlib.blake2b(digest_size=16)
        for i in progress:
            trajectory, start = self.episodes[i].trajectory, self._logged.get(i, 0)
            tokens.update(trajectory.completion_ids[start:].tobytes() + trajectory.behaviour_logps[start:].tobytes())
            self._logged[i] = len(trajectory)
        counts = {str(i): [count, self.episodes[i].trajectory.status] for i, (count, _) in progress.items()}
        self._emit("slice", {"version": self.version, "rollouts": counts, "tokens": tokens.hexdigest()})
        for i, (count, ended) in progress.items():
            if count and i not in self._drew:
                self._event({"op": "segment", "id": i})
                self._drew.add(i)
            if ended:
                self._event({"op": "finish", "id": i, "accepted": True})  # a failed one too: its group fills its row
        self._top_up()
        self.pool = token_budget.advance(self.pool, progress, self.budget)

    def harvest(self, most: int) -> list[Group]:
        """At most so many complete groups, oldest prompts first: they are used now."""
        complete = self._complete_groups()
        broken = [group for group in complete if not any(group.valid)]  # these have nothing to learn from
        groups = [group for group in complete if any(group.valid)][:most]
        self._event({"op": "consume", "ids": [e.id for group in [*groups, *broken] for e in group.episodes if e]})
        for group in [*groups, *broken]:
            self.open.remove(group.prompt)
            for i in self._ids(group.prompt):
                self.episodes.pop(i, None)
                self._logged.pop(i, None)
                self.gone.discard(i)
        return groups

    def close(self) -> None:
        """The weights moved on: what has grown too old leaves."""
        self.pool, record = token_budget.close(self.pool)
        self._emit("iteration", record)
        discarded = self._event({"op": "version"})["discarded"]
        self.pool = token_budget.remove(self.pool, discarded)
        for i in discarded:
            self._forget(i)

    def to_json(self) -> dict[str, Any]:
        """Between two steps; `restore` is the inverse."""
        return {
            "pool": dataclasses.asdict(dataclasses.replace(self.pool, completed=())),
            "state": dataclasses.asdict(self.state) | {"oldest": sorted(self.state.oldest.items())},
            "prompts": self.prompts,
            "open": self.open,
            "gone": sorted(self.gone),
            "episodes": [self.episodes[i].to_json() for i in sorted(self.episodes)],
        }

    def restore(self, record: Mapping[str, Any], task_of: Callable[[int], Task]) -> None:
        """What `to_json` gave; `task_of(number)` is the task of that number."""
        pool, state = record["pool"], record["state"]
        active = tuple(Rollout(i, retention, tuple(map(tuple, runs))) for i, retention, runs in pool["active"])
        self.pool = Pool(queue=tuple(pool["queue"]), active=active, version=pool["version"])
        self.state = staleness.State(
            version=state["version"],
            accepted=state["accepted"],
            running=tuple(state["running"]),
            pending=tuple(state["pending"]),
            oldest=dict(map(tuple, state["oldest"])),
        )
        self.prompts, self.open, self.gone = record["prompts"], list(record["open"]), set(record["gone"])
        self.episodes = {entry["id"]: restore_episode(entry, task_of(entry["task"])) for entry in record["episodes"]}
        self._logged = {i: len(episode.trajectory) for i, episode in self.episodes.items()}

    def _ids(self, prompt: int) -> range:
        return range(prompt * self.group_size, (prompt + 1) * self.group_size)

    def _complete_groups(self) -> list[Group]:
        """Those of which no answer is still to come, oldest prompts first."""
        ended = lambda i: i in self.gone or not self.episodes[i].running  # noqa: E731
        complete = [prompt for prompt in self.open if all(map(ended, self._ids(prompt)))]
        return [Group(prompt, tuple(self.episodes.get(i) for i in self._ids(prompt))) for prompt in complete]

    def _purge(self, ids: Sequence[int]) -> None:
        """What `token_budget.begin` throws away. The place of one whose group goes on without it is used up all the
        same: were it started again, more would be generated than the rows of a batch hold, step after step."""
        for i in ids:
            self._forget(i)
        kept = [i for i in ids if any(j in self.episodes for j in self._ids(i // self.group_size))]
        for i in ids:
            self._event({"op": "finish", "id": i, "accepted": i in kept})
        if aged := [i for i in kept if i in self.state.oldest]:
            self._event({"op": "consume", "ids": aged})

    def _forget(self, i: int) -> None:
        del self.episodes[i]
        self._logged.pop(i, None)
        self.gone.add(i)

    def _event(self, event: dict[str, Any]) -> dict[str, Any]:
        """Tells the staleness bound; whom it admits waits for a slot."""
        self.state, record = staleness.step(self.state, event, self.limits)
        self._emit("staleness", record)
        self.pool = token_budget.submit(self.pool, record["admitted"])
        return record

    def _top_up(self) -> None:
        """Draws new prompts as long as rollouts may start and none waits for it."""
        free = staleness.capacity(self.state, self.limits)
        if free <= 0 or self.state.pending:
            return
        count = -(-free // self.group_size)
        episodes = self._draw(self.prompts, count)
        self.episodes |= {episode.id: episode for episode in episodes}
        self.open += range(self.prompts, self.prompts + count)
        self.prompts += count
        self._event({"op": "submit", "ids": [episode.id for episode in episodes]})
