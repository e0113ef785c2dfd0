"""Token budget and staleness side by side, with rollouts whose lengths are drawn instead of generated."""

import json
import random
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.rl.collector import Progress
from ling_jax.rl.episode import Episode
from ling_jax.rl.rollouts import Rollouts
from ling_jax.rl.staleness import Limits
from ling_jax.rl.token_budget import Budget
from ling_jax.rl.trajectory import Trajectory
from tests.helpers.event_log import check_log

PIECE = 3
TASK = SimpleNamespace(id="task", messages=(), environment="none")


class World:
    """Rollouts of drawn lengths, some of which fail, and the log of what becomes of them."""

    def __init__(self, seed: int, failing: float = 0.0):
        self.seed, self.failing, self.events = seed, failing, []

    def rollouts(self, budget: Budget, limits: Limits, group_size: int) -> Rollouts:
        draw = lambda first, count: self.begin(range(first * group_size, (first + count) * group_size))  # noqa: E731
        emit = lambda kind, record: self.events.append(json.loads(json.dumps({"kind": kind, **record})))  # noqa: E731
        return Rollouts(budget, limits, group_size, draw, emit)

    def begin(self, ids) -> list[Episode]:
        return [Episode(i, 0, TASK, 0, 99, Trajectory("task", [1]), [], []) for i in ids]

    def advance(self, running, version) -> list[Progress]:
        progress = []
        for i, episode in sorted(running.items()):
            before = episode.drawn
            self.move(episode, version)
            progress.append(Progress(i, episode.drawn - before, not episode.running))
        return progress

    def move(self, episode: Episode, version: int) -> None:
        rng = random.Random(f"{self.seed}/{episode.id}")
        length, fails = rng.choice([1, 2, 5, 9, 20, 60]), rng.random() < self.failing
        count = min(PIECE, length - episode.drawn)
        episode.trajectory.append_generation(range(count), [-1.0] * count, version)
        if episode.drawn == length:
            episode.end("env_failed" if fails else rng.choice(["finished", "truncated"]))


def iterate(rollouts: Rollouts, world: World, most: int):
    rollouts.begin()
    version = rollouts.version
    while rollouts.is_open:
        rollouts.advance(world.advance(rollouts.running, version))
    groups = rollouts.harvest(most)
    rollouts.close()
    return groups, version


@st.composite
def settings_of(draw):
    staleness = draw(st.integers(0, 4))
    prompts, group_size, slots = draw(st.integers(1, 3)), draw(st.integers(2, 3)), draw(st.integers(1, 8))
    budget = Budget(
        tokens=draw(st.integers(1, 60)),
        pool_size=slots,
        max_retention=draw(st.integers(0, 4)) if staleness else 0,
        max_staleness=staleness,
        count=draw(st.sampled_from(["completed", "generated"])),
        refill=draw(st.sampled_from(["iteration", "continuous"])),
    )
    return budget, Limits(slots, staleness, prompts * group_size), group_size


@given(settings_of(), st.integers(0, 10**6), st.sampled_from([0.0, 0.3]))
@settings(max_examples=60)
def test_the_log_tells_versions_and_discards(setting, seed, failing):
    budget, limits, group_size = setting
    world, prompts = World(seed, failing), limits.consumer_batch_size // group_size
    rollouts = world.rollouts(budget, limits, group_size)
    for _ in range(8):
        groups, version = iterate(rollouts, world, prompts)
        assert groups or failing or not rollouts.pool.active, "an iteration ended early, without a batch"
        assert len(groups) <= prompts and [g.prompt for g in groups] == sorted(g.prompt for g in groups)
        for episode in (e for g in groups for e, valid in zip(g.episodes, g.valid, strict=True) if valid):
            assert not episode.running and version - episode.trajectory.versions.min() <= limits.max_staleness
    drew = check_log(
        world.events,
        max_staleness=limits.max_staleness,
        max_retention=budget.max_retention,
        consumer_batch_size=limits.consumer_batch_size,
        slots=limits.max_concurrent,
    )
    for i, episode in rollouts.episodes.items():
        assert [list(run) for run in episode.trajectory.runs] == drew.get(i, []), f"rollout {i}"


@given(settings_of(), st.integers(0, 10**6))
@settings(max_examples=30)
def test_what_is_stored_between_steps_goes_on_as_if_nothing_was(setting, seed):
    budget, limits, group_size = setting
    alone, stopped = World(seed), World(seed)
    whole, part = (world.rollouts(budget, limits, group_size) for world in (alone, stopped))
    for _ in range(6):
        iterate(whole, alone, 2)
        record = json.loads(json.dumps(part.to_json()))
        part = stopped.rollouts(budget, limits, group_size)
        part.restore(record, lambda number: TASK)
        iterate(part, stopped, 2)
    assert stopped.events == alone.events
    for i, episode in part.episodes.items():
        assert episode.to_json() == whole.episodes[i].to_json()


def test_synchronous_groups_are_used_at_once():
    """At staleness 0 and without a budget each step starts, finishes and uses exactly its batch."""
    world, budget = World(0), Budget(tokens=2**62, pool_size=3, max_retention=0, max_staleness=0)
    rollouts = world.rollouts(budget, Limits(3, 0, 4), 2)
    for step in range(4):
        groups, _ = iterate(rollouts, world, 2)
        assert [group.prompt for group in groups] == [2 * step, 2 * step + 1]
        assert not rollouts.episodes and not rollouts.open


class OneBreaks(World):
    """Only rollout 1 fails."""

    def move(self, episode: Episode, version: int) -> None:
        super().move(episode, version)
        if episode.id == 1 and not episode.running:
            episode.end("infra_failed")


def test_a_failure_starts_no_other_answer_in_its_place():
    """Its group fills its row without it, so each step still starts prompts · group_size answers and no more."""
    world, budget = OneBreaks(0), Budget(tokens=2**62, pool_size=8, max_retention=0, max_staleness=0)
    rollouts = world.rollouts(budget, Limits(8, 0, 4), 2)
    for step in range(5):
        seen = len(world.events)
        groups, _ = iterate(rollouts, world, 2)
        moved = {i for event in world.events[seen:] if event["kind"] == "slice" for i in event["rollouts"]}
        assert moved == {str(i) for i in range(4 * step, 4 * step + 4)}
        assert [group.valid for group in groups] == [[True, step > 0], [True, True]]
        assert not rollouts.episodes and not rollouts.open and not rollouts.state.oldest


class OneIsSlow(World):
    """Rollout 1 never ends by itself; all others do at once."""

    def move(self, episode: Episode, version: int) -> None:
        episode.trajectory.append_generation([0], [-1.0], version)
        if episode.id != 1:
            episode.end("finished")


def test_a_purged_answer_keeps_its_place_where_its_group_is_used():
    budget = Budget(tokens=4, pool_size=4, max_retention=0, max_staleness=3, refill="iteration")
    world = OneIsSlow(0)
    rollouts = world.rollouts(budget, Limits(4, 3, 2), 2)
    used = sum(len(iterate(rollouts, world, 1)[0]) for _ in range(6))
    purged = [i for event in world.events if event["kind"] == "iteration" for i in event["purged"]]
    waiting = [i for i in rollouts.state.oldest if i not in rollouts.state.running]
    assert purged == [1] and used == 6 and rollouts.state.accepted == 2 * used + len(waiting)


def test_where_all_break_the_run_goes_on_without_a_batch():
    world, budget = World(0, failing=1.0), Budget(tokens=9, pool_size=4, max_retention=1, max_staleness=1)
    rollouts = world.rollouts(budget, Limits(4, 1, 4), 2)
    for _ in range(3):
        groups, _ = iterate(rollouts, world, 2)
        assert groups == []


def test_a_long_run_never_lacks_a_batch():
    """Where answers end by themselves, some group is complete however many were thrown away."""
    world, budget = World(1), Budget(tokens=20, pool_size=16, max_retention=4, max_staleness=4)
    rollouts = world.rollouts(budget, Limits(16, 4, 4), 4)
    assert all(len(iterate(rollouts, world, 1)[0]) == 1 for _ in range(150))
    assert any(event.get("discarded") for event in world.events)


def test_a_budget_used_up_before_a_group_is_complete_waits_for_one():
    world, budget = World(3), Budget(tokens=1, pool_size=2, max_retention=4, max_staleness=4)
    groups, _ = iterate(world.rollouts(budget, Limits(2, 4, 2), 2), world, 1)
    assert len(groups) == 1
