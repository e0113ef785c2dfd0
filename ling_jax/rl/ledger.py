"""The ledger of rollouts: which start, go on, wait, are trained on and are thrown away.

A state machine without clocks and threads: events in, decisions out, both JSON, O(log n) an event. Rollout i is answer
i % group_size to prompt i // group_size. Four policies share the one account of each rollout {phase, started, oldest,
tokens}:

    admission   what is drawn and not yet trained on stays within (max_staleness + 1) batches; older prompts run first
    budget      a version's generation ends with its budget of tokens, or with a full batch (C3PO++: Ring-1T report,
                algorithm 1; Ling 2.6 report §4.2.1)
    staleness   no token is trained on that is more than max_staleness versions old, and no rollout is paused more than
                max_retention times (Ling 2.6 report §4.2.1)
    waiting     a version that would throw a rollout away waits for it, until WAIT_BUDGETS budgets more are generated,
                or as many batches of the mean length (our choice: what is thrown away are the long answers)
"""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ling_jax.messages import nearest

COUNTS = ("completed", "generated")
REFILLS = ("iteration", "continuous")
WAIT_BUDGETS = 8  # our choice: with all slots busy, a rollout then gets nine times its share of a budget in a version


@dataclasses.dataclass(frozen=True)
class Limits:
    """Raises ValueError on what is out of range, and where partial rollouts are kept but none could be used.

    The two reports differ in what the budget counts: Ring-1T's algorithm the full length of rollouts that ended in the
    version ("completed"), Ling 2.6 what was generated in it ("generated").
    """

    slots: int  # rollouts that run at once
    prompts_per_step: int  # groups that an optimisation step uses at most: a batch
    group_size: int  # answers to a prompt
    token_budget: int  # of a version; 0: none
    max_staleness: int  # versions between a rollout's oldest token and the weights that train on it
    max_retention: int  # how often a rollout may be paused by a new version and go on
    count: str = "generated"  # Ling 2.6 report §4.2.1: "cumulative number of generated tokens"
    refill: str = "continuous"  # Ling 2.6 report §4.2.1: new work is submitted while old is collected
    wait_budgets: int = WAIT_BUDGETS  # 0: as the reports have it, what is too old is thrown away

    def __post_init__(self):
        least = dict(slots=1, prompts_per_step=1, group_size=1, token_budget=0, max_staleness=0, max_retention=0)
        for name, bound in (least | {"wait_budgets": 0}).items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {bound}")
        for name, known in (("count", COUNTS), ("refill", REFILLS)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is {value!r}{nearest(str(value), known)}; expected one of {', '.join(known)}")
        if self.max_staleness == 0 and self.max_retention > 0:
            raise ValueError(
                f"max_staleness is 0 and max_retention {self.max_retention} keeps partial rollouts: each has a segment "
                "one version old as soon as the weights move, so none could be trained on; set max_staleness to at "
                "least 1, or max_retention to 0"
            )

    @property
    def max_outstanding(self) -> int:
        """Rollouts that may be drawn and not yet trained on: (max_staleness + 1) batches."""
        return (self.max_staleness + 1) * self.prompts_per_step * self.group_size


@dataclasses.dataclass(frozen=True)
class Drawn:
    """These prompts were drawn; their rollouts wait for a slot."""

    prompts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Generated:
    """A running rollout got tokens from the weights of now."""

    rollout: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Ended:
    """A running rollout ended; without a reward it is part of no batch."""

    rollout: int
    rewarded: bool


@dataclasses.dataclass(frozen=True)
class BatchTaken:
    """The trainer takes these complete groups, at most a batch of them; None: those that have to be used first."""

    prompts: tuple[int, ...] | None = None
    unscored: tuple[int, ...] = ()  # rollouts of these whose reward failed: they are not trained on


@dataclasses.dataclass(frozen=True)
class NewVersion:
    """The weights moved on by one batch."""


Event = Drawn | Generated | Ended | BatchTaken | NewVersion
EVENTS = {"drawn": Drawn, "generated": Generated, "ended": Ended, "batch_taken": BatchTaken, "new_version": NewVersion}
NAMES = {kind: name for name, kind in EVENTS.items()}


class Decisions(NamedTuple):
    """What follows from an event; ids in ascending order."""

    started: tuple[int, ...] = ()  # rollouts that run from now on
    taken: tuple[int, ...] = ()  # prompts of the batch
    broken: tuple[int, ...] = ()  # prompts that left with it: none of their rollouts has a reward
    discarded: tuple[int, ...] = ()  # rollouts that are too old, or were paused too often


class Left(NamedTuple):
    """A rollout that has left the ledger."""

    tokens: int
    trained: bool


@dataclasses.dataclass
class Account:
    """Of one rollout."""

    phase: str = "waiting"  # for a slot; then "running"; then "ended"
    started: int = -1  # version in which it got its slot
    oldest: int = -1  # version of its first token
    tokens: int = 0
    rewarded: bool = False


@dataclasses.dataclass
class Group:
    """The rollouts of a prompt that were not thrown away."""

    rollouts: list[int]
    unfinished: int  # of them: those that wait or run
    oldest: int = -1  # version of the first token that would be trained on


COUNTERS = ("version", "prompts", "generated", "completed", "ended", "learning")  # of a ledger, as they are stored


class Ledger:
    """`apply` tells it what happened; it says what to do. See the module for its policies."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.version = 0
        self.prompts = 0  # drawn so far
        self.generated = 0  # tokens since the last batch was taken: a trainer may learn from it meanwhile
        self.completed = 0  # tokens of the rollouts that ended since then
        self.learning = 0  # places of the batch that was taken in this version, in prompts
        self.ended = [0, 0]  # rollouts that ended in the whole run, and their tokens
        self.accounts: dict[int, Account] = {}
        self.groups: dict[int, Group] = {}
        self.running: dict[int, None] = {}  # in the order in which they started
        self.left: list[Left] = []  # since `take_left`
        self._waiting: collections.deque[int] = collections.deque()
        self._ended_now = False  # whether some rollout ended since then
        self._started: dict[int, set[int]] = collections.defaultdict(set)  # version -> running rollouts
        self._oldest: dict[int, set[int]] = collections.defaultdict(set)  # version -> rollouts, of the first token
        self._complete: dict[int, set[int]] = collections.defaultdict(set)  # oldest version -> complete groups
        self._incomplete: dict[int, set[int]] = collections.defaultdict(set)  # oldest version -> groups that go on
        self._broken: set[int] = set()  # complete groups without a reward

    def apply(self, event: Event) -> Decisions:
        """Raises ValueError on a rollout or a prompt that is not where the event says; nothing has changed then."""
        match event:
            case Drawn(prompts):
                self._draw(prompts)
            case Generated(rollout, tokens):
                self._generate(rollout, tokens)
            case Ended(rollout, rewarded):
                self._end(rollout, rewarded)
            case BatchTaken(prompts, unscored):
                taken, broken = self._take(self.batch if prompts is None else prompts, unscored)
                return Decisions(taken=taken, broken=broken)
            case NewVersion():
                discarded = self._move_on()
                return Decisions(started=self._start(), discarded=discarded)
        return Decisions(started=self._start())

    @property
    def outstanding(self) -> int:
        """Rollouts that were drawn and not yet trained on, with the places of those that broke."""
        return len(self.groups) * self.limits.group_size

    @property
    def wanted(self) -> int:
        """How many prompts to draw now, so that no slot is empty: the tasks of later ones may then be chosen later.

        Those that begin beside an optimisation step have one version less that could use them: the batch of this one
        keeps its places until the weights move on.
        """
        if not self._may_begin:
            return 0
        limits = self.limits
        free = limits.slots - len(self.running) - len(self._waiting)
        room = limits.max_outstanding // limits.group_size - len(self.groups) - self.learning
        return max(0, min(room, -(-free // limits.group_size)))

    @property
    def is_open(self) -> bool:
        """Whether this version goes on generating."""
        return bool(self.running) and (not self._has_enough or self._must_wait())

    @property
    def batch(self) -> tuple[int, ...]:
        """Prompts that `BatchTaken` would take now: those that have to be used first."""
        ordered = (prompt for version in sorted(self._complete) for prompt in sorted(self._complete[version]))
        return tuple(sorted(itertools.islice(ordered, self.limits.prompts_per_step)))

    def take_left(self) -> list[Left]:
        """What has left since the last call."""
        left, self.left = self.left, []
        return left

    def to_json(self) -> dict[str, Any]:
        """All of it but `left`; `Ledger.from_json` is the inverse."""
        return {name: getattr(self, name) for name in COUNTERS} | {
            "ended_now": self._ended_now,
            "groups": [[prompt, group.rollouts] for prompt, group in self.groups.items()],
            "accounts": [[i, *dataclasses.astuple(account)] for i, account in self.accounts.items()],
            "running": list(self.running),
            "waiting": list(self._waiting),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], limits: Limits) -> "Ledger":
        ledger = cls(limits)
        for name in COUNTERS:
            setattr(ledger, name, record.get(name, 0))  # `learning` is younger than the others
        ledger._ended_now = record["ended_now"]
        ledger.accounts = {i: Account(*fields) for i, *fields in record["accounts"]}
        ledger.running = dict.fromkeys(record["running"])
        ledger._waiting.extend(record["waiting"])
        for i, account in ledger.accounts.items():
            if account.phase == "running":
                ledger._started[account.started].add(i)
            if account.oldest >= 0:
                ledger._oldest[account.oldest].add(i)
        for prompt, rollouts in record["groups"]:
            unfinished = sum(ledger.accounts[i].phase != "ended" for i in rollouts)
            ledger.groups[prompt] = Group(list(rollouts), unfinished)
            ledger._file(prompt)
        return ledger

    @property
    def _may_begin(self) -> bool:
        """Whether prompts that nobody has begun with may start now."""
        if self.limits.refill == "iteration":
            complete = self._broken or any(self._complete.values())
            return not (self.generated or self._ended_now) or not (self.running or complete)
        return self.limits.max_retention > 0 or not self._has_enough  # one that cannot be paused would be waited for

    @property
    def _has_enough(self) -> bool:
        """Whether the version's generation could end: a batch has at least one group."""
        return any(self._complete.values()) and (self._budget_used or self._batch_full)

    @property
    def _budget_used(self) -> bool:
        used = self.generated if self.limits.count == "generated" else self.completed
        return bool(self.limits.token_budget) and used >= self.limits.token_budget

    @property
    def _batch_full(self) -> bool:
        return sum(map(len, self._complete.values())) >= self.limits.prompts_per_step

    @property
    def _most_generated(self) -> int:
        """Tokens at which a version waits no more; a budget that is too small for the answers does not count."""
        rollouts, tokens = self.ended
        batch = self.limits.prompts_per_step * self.limits.group_size * tokens // max(rollouts, 1)
        budget = self.limits.token_budget or 2**62
        return (1 + self.limits.wait_budgets) * max(budget, batch)

    def _must_wait(self) -> bool:
        """Whether the next version would throw away what a longer wait saves, and the wait may go on.

        Groups are used oldest first, a batch in a version. So those whose last version is k from now must be at most k
        batches behind this one's, for all k; an incomplete one in time can only help where the batch has room for it.
        """
        limits = self.limits
        if not limits.wait_budgets or self.generated >= self._most_generated:
            return False
        if any(started <= self.version - limits.max_retention for started in self._started):
            return True
        complete = incomplete = 0
        oldest = sorted({*self._complete, *self._incomplete})
        for version in oldest:
            complete += len(self._complete.get(version, ()))
            incomplete += len(self._incomplete.get(version, ()))
            left = version + limits.max_staleness - self.version  # versions after this one that could still use them
            behind = complete + incomplete - min(complete, limits.prompts_per_step)
            if incomplete and complete < limits.prompts_per_step and behind > left * limits.prompts_per_step:
                return True
        return False

    def _draw(self, prompts: Sequence[int]) -> None:
        for expected, prompt in enumerate(prompts, start=self.prompts):
            if prompt != expected:
                raise ValueError(
                    f"prompt {prompt} was drawn; expected {expected}: prompts are numbered as they are drawn"
                )
        size, most = self.limits.group_size, self.limits.max_outstanding
        if self.outstanding + size * len(prompts) > most:
            raise ValueError(f"{len(prompts)} prompts pass the bound of {most} rollouts; {self.outstanding} are out")
        for prompt in prompts:
            rollouts = list(range(prompt * size, (prompt + 1) * size))
            self.groups[prompt] = Group(rollouts, size)
            self.accounts |= {i: Account() for i in rollouts}
            self._waiting.extend(rollouts)
            self.prompts += 1

    def _start(self) -> tuple[int, ...]:
        started: list[int] = []
        while self._waiting and len(self.running) < self.limits.slots:
            begun = self.groups[self._waiting[0] // self.limits.group_size].oldest >= 0  # the others wait for it
            if not (begun or self._may_begin):
                break
            i = self._waiting.popleft()
            self.accounts[i].phase, self.accounts[i].started = "running", self.version
            self.running[i] = None
            self._started[self.version].add(i)
            started.append(i)
        return tuple(started)

    def _generate(self, i: int, tokens: int) -> None:
        account = self._running_account(i, "generated")
        if tokens < 0:
            raise ValueError(f"rollout {i} generated {tokens} tokens; expected at least 0")
        account.tokens += tokens
        self.generated += tokens
        if tokens and account.oldest < 0:
            account.oldest = self.version
            self._oldest[self.version].add(i)
            prompt = i // self.limits.group_size
            if self.groups[prompt].oldest < 0:
                self._refile(prompt)

    def _end(self, i: int, rewarded: bool) -> None:
        account = self._running_account(i, "ended")
        self._stop(i)
        account.phase, account.rewarded, self._ended_now = "ended", rewarded, True
        self.completed += account.tokens
        self.ended = [self.ended[0] + 1, self.ended[1] + account.tokens]
        prompt = i // self.limits.group_size
        self.groups[prompt].unfinished -= 1
        self._refile(prompt)

    def _take(self, taken: tuple[int, ...], unscored: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        complete, broken = set().union(*self._complete.values()), tuple(sorted(self._broken))
        if len(taken) > self.limits.prompts_per_step or not complete.issuperset(taken):
            raise ValueError(f"prompts {list(taken)} were taken; expected some of {sorted(complete)}, a batch at most")
        for prompt in (*taken, *broken):
            for i in self.groups[prompt].rollouts:
                self._forget(i, trained=self.accounts[i].rewarded and i not in unscored)
            self._unfile(prompt)
            del self.groups[prompt]
        self.generated, self.completed, self._ended_now = 0, 0, False
        self.learning = self.limits.prompts_per_step if taken else self.learning
        return taken, broken

    def _move_on(self) -> tuple[int, ...]:
        self.version += 1
        self.learning = 0
        paused = [v for v in self._started if self.version - v > self.limits.max_retention]
        stale = [v for v in self._oldest if self.version - v > self.limits.max_staleness]
        discarded = {i for v in paused for i in self._started[v]} | {i for v in stale for i in self._oldest[v]}
        for i in sorted(discarded):
            self._discard(i)
        return tuple(sorted(discarded))

    def _discard(self, i: int) -> None:
        prompt = i // self.limits.group_size
        group = self.groups[prompt]
        group.unfinished -= self.accounts[i].phase != "ended"
        group.rollouts.remove(i)
        self._stop(i)
        self._forget(i, trained=False)
        self._refile(prompt)
        if not group.rollouts:
            self._unfile(prompt)
            del self.groups[prompt]

    def _stop(self, i: int) -> None:
        if i in self.running:
            del self.running[i]
            _drop(self._started, self.accounts[i].started, i)

    def _forget(self, i: int, *, trained: bool) -> None:
        account = self.accounts.pop(i)
        _drop(self._oldest, account.oldest, i)
        self.left.append(Left(account.tokens, trained))

    def _refile(self, prompt: int) -> None:
        self._unfile(prompt)
        self._file(prompt)

    def _file(self, prompt: int) -> None:
        """Puts a group where the policies find it, by the oldest token that would be trained on."""
        group = self.groups[prompt]
        kept = [a for a in map(self.accounts.__getitem__, group.rollouts) if a.phase != "ended" or a.rewarded]
        group.oldest = min((account.oldest for account in kept if account.oldest >= 0), default=-1)
        if group.unfinished:
            if group.oldest >= 0:
                self._incomplete[group.oldest].add(prompt)
        elif kept:
            self._complete[group.oldest].add(prompt)
        else:
            self._broken.add(prompt)

    def _unfile(self, prompt: int) -> None:
        oldest = self.groups[prompt].oldest
        _drop(self._incomplete, oldest, prompt)
        _drop(self._complete, oldest, prompt)
        self._broken.discard(prompt)

    def _running_account(self, i: int, what: str) -> Account:
        if i not in self.running:
            phase = self.accounts[i].phase if i in self.accounts else "unknown"
            raise ValueError(f"rollout {i} {what}; it is {phase}, expected a running one")
        return self.accounts[i]


def event_json(event: Event) -> dict[str, Any]:
    """{"op": name, **fields}."""
    return {"op": NAMES[type(event)], **dataclasses.asdict(event)}


def event_from_json(record: Mapping[str, Any]) -> Event:
    """The inverse of `event_json`. Raises ValueError on an unknown event."""
    op = record.get("op")
    if op not in EVENTS:
        raise ValueError(f"op is {op!r}{nearest(str(op), EVENTS)}; expected one of {', '.join(EVENTS)}")
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items() if name != "op"
    }
    return EVENTS[op](**fields)


def _drop(sets: dict[int, set[int]], key: int, value: int) -> None:
    """Empty sets go too, so that the keys are the versions that matter."""
    if key in sets:
        sets[key].discard(value)
        if not sets[key]:
            del sets[key]
