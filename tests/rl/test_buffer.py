"""Rollouts under way, with lengths that are drawn instead of generated."""

import json
import random
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.rl.accounts import ledger_metrics
from ling_jax.rl.buffer import RolloutBuffer
from ling_jax.rl.collector import Progress
from ling_jax.rl.episode import Episode
from ling_jax.rl.ledger import Left, Limits
from ling_jax.rl.trajectory import Trajectory
from tests.helpers.event_log import check_log
from tests.rl.test_ledger import drawn_limits

PIECE = 3
TASK = SimpleNamespace(id="task", messages=(), environment="none")


class World:
    """Rollouts of drawn lengths, some of which fail, and the log of what becomes of them."""

    def __init__(self, seed: int, failing: float = 0.0):
        self.seed, self.failing, self.events = seed, failing, []

    def buffer(self, limits: Limits) -> RolloutBuffer:
        size = limits.group_size

        def draw(first: int, count: int) -> list[Episode]:
            self.events += [{"kind": "prompt", "prompt": prompt} for prompt in range(first, first + count)]
            return [self.begin(i) for i in range(first * size, (first + count) * size)]

        emit = lambda kind, record: self.events.append(json.loads(json.dumps({"kind": kind, **record})))  # noqa: E731
        return RolloutBuffer(limits, draw, emit)

    @property
    def discarded(self) -> set[int]:
        return {int(i) for event in self.events for i in event.get("discarded", ())}

    def length(self, i: int) -> int:
        return random.Random(f"{self.seed}/{i}").choice([1, 2, 5, 9, 20, 60])

    def begin(self, i: int) -> Episode:
        return Episode(i, 0, TASK, 0, 99, Trajectory("task", [1]), [], [])

    def advance(self, running: dict[int, Episode], version: int) -> list[Progress]:
        return [self.moved(running[i], version) for i in sorted(running)]

    def moved(self, episode: Episode, version: int) -> Progress:
        rng = random.Random(f"{self.seed}/{episode.id}")
        length, fails = rng.choice([1, 2, 5, 9, 20, 60]), rng.random() < self.failing
        count = min(PIECE, length - episode.drawn)
        episode.trajectory.append_generation(range(count), [-1.0] * count, version)
        if episode.drawn == length:
            episode.end("infra_failed" if fails else rng.choice(["finished", "truncated"]))
        return Progress(episode.id, count, not episode.running)


def advance(buffer: RolloutBuffer, world: World) -> None:
    buffer.advance(world.advance(buffer.running, buffer.version))


def version_of(buffer: RolloutBuffer, world: World):
    """(groups of its batch, their version)."""
    buffer.top_up()
    while buffer.ledger.is_open:
        advance(buffer, world)
    groups, version = buffer.batch, buffer.version
    buffer.take([group.prompt for group in buffer.batch])
    buffer.move_on()
    return groups, version


@given(drawn_limits(), st.integers(0, 10**6), st.sampled_from([0.0, 0.3]))
@settings(max_examples=60, deadline=None)
def test_the_log_tells_versions_and_discards(limits, seed, failing):
    world = World(seed, failing)
    buffer = world.buffer(limits)
    for _ in range(8):
        groups, version = version_of(buffer, world)
        assert len(groups) <= limits.prompts_per_step
        assert [g.prompt for g in groups] == sorted(g.prompt for g in groups)
        for episode in (episode for group in groups for episode in group.paid):
            assert not episode.running and version - episode.trajectory.versions.min() <= limits.max_staleness
    drew = check_log(
        world.events,
        max_staleness=limits.max_staleness,
        max_retention=limits.max_retention,
        prompts_per_step=limits.prompts_per_step,
        group_size=limits.group_size,
    )
    assert not buffer.episodes.keys() & drew.keys()
    for episode in buffer.episodes.values():
        assert not episode.context[1:] or buffer.version - episode.trajectory.versions.min() <= limits.max_staleness
    for i, runs in drew.items():
        assert sum(count for _, count in runs) == world.length(i) or i in world.discarded


@given(drawn_limits(), st.integers(0, 10**6), st.data())
@settings(max_examples=30, deadline=None)
def test_what_is_stored_between_two_pieces_goes_on_as_if_nothing_was(limits, seed, data):
    alone, stopped = World(seed), World(seed)
    whole, part = alone.buffer(limits), stopped.buffer(limits)
    for _ in range(5):
        version_of(whole, alone)
        part.top_up()
        while part.ledger.is_open:
            if data.draw(st.booleans()):
                record = json.loads(json.dumps(part.to_json()))
                part = stopped.buffer(limits)
                part.restore(record, lambda number: TASK)
            advance(part, stopped)
        part.take([group.prompt for group in part.batch])
        part.move_on()
    assert stopped.events == alone.events and part.recent == whole.recent
    for i, episode in part.episodes.items():
        for name in ("completion_ids", "behaviour_logps", "versions", "loss_mask"):
            np.testing.assert_array_equal(
                getattr(episode.trajectory, name), getattr(whole.episodes[i].trajectory, name)
            )


def test_synchronous_groups_are_used_at_once():
    """At staleness 0 and without a budget each version starts, finishes and uses exactly its batch."""
    world = World(0)
    buffer = world.buffer(Limits(3, 2, 2, 0, 0, 0))
    for step in range(4):
        groups, _ = version_of(buffer, world)
        assert [group.prompt for group in groups] == [2 * step, 2 * step + 1]
        assert not buffer.episodes and not buffer.ledger.groups


class OneBreaks(World):
    """Only rollout 1 fails."""

    def moved(self, episode: Episode, version: int) -> Progress:
        moved = super().moved(episode, version)
        if episode.id == 1 and moved.ended:
            episode.end("env_failed")
        return moved


def test_a_failure_starts_no_other_answer_in_its_place():
    """Its group fills its row without it, so each version still starts prompts · group_size answers and no more."""
    world = OneBreaks(0)
    buffer = world.buffer(Limits(8, 2, 2, 0, 0, 0))
    for step in range(5):
        groups, _ = version_of(buffer, world)
        taken = [event for event in world.events if event["kind"] == "taken"][step]
        assert set(taken["rollouts"]) == {str(i) for i in range(4 * step, 4 * step + 4)}
        assert [group.valid for group in groups] == [[True, step > 0], [True, True]]
        assert not buffer.episodes and not buffer.ledger.groups


def test_where_all_break_the_run_goes_on_without_a_batch():
    world = World(0, failing=1.0)
    buffer = world.buffer(Limits(4, 2, 2, 9, 1, 1))
    for _ in range(3):
        assert version_of(buffer, world)[0] == []


def test_what_left_lately_says_whether_long_answers_are_learnt_from():
    ledger = World(0).buffer(Limits(4, 2, 2, 9, 1, 1)).ledger
    recent = [Left(10, True)] * 6 + [Left(100, True), Left(100, False)]
    metrics = ledger_metrics(ledger, recent)
    assert metrics["tokens_learnt"] == 160 / 260
    assert (metrics["length/ended"], metrics["length/learnt"]) == (32.5, 160 / 7)
    assert [metrics[f"learnt/quartile_{i}"] for i in range(1, 5)] == [1, 1, 1, 0.5]
    assert (metrics["outstanding"], metrics["outstanding_bound"]) == (0, 8)
