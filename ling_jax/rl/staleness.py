"""Which rollouts may start and which have grown too old: a pure state machine, whose log is its history.

Rollouts run ahead of the trainer by a bounded number of weight versions (Ling 2.6 report §4.2.1). There is no clock and
no thread here: the loop tells what happened, one event at a time, and does what is decided. Events are JSON objects:

    {"op": "submit", "ids": [0, 1]}                  rollouts that wait to start, first come, first served
    {"op": "segment", "id": 0}                       a running one generates under the weights of now
    {"op": "finish", "id": 0, "accepted": true}      it ended, and keeps its place in a batch or not
    {"op": "consume", "ids": [0, 1]}                 the trainer has used the places of these accepted ones
    {"op": "version"}                                the weights moved on by one optimisation step
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ling_jax.config import nearest

Event = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Raises ValueError on what is out of range."""

    max_concurrent: int  # rollouts that run at once
    max_staleness: int  # weight versions between the oldest token of a rollout and the weights of now
    consumer_batch_size: int  # rollouts that one optimisation step uses

    def __post_init__(self):
        for name, least in (("max_concurrent", 1), ("max_staleness", 0), ("consumer_batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")


@dataclasses.dataclass(frozen=True)
class State:
    """`accepted` counts over all versions; `oldest` is the first weight version of each rollout not yet trained on."""

    version: int = 0
    accepted: int = 0
    running: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    oldest: Mapping[int, int] = dataclasses.field(default_factory=dict)


def capacity(state: State, limits: Limits) -> int:
    """How many rollouts may start now (AReaL's staleness manager); negative where too many have.

    min(max_concurrent - running, (max_staleness + version + 1) · consumer_batch_size - (accepted + running))
    """
    running = len(state.running)
    ahead = (limits.max_staleness + state.version + 1) * limits.consumer_batch_size
    return min(limits.max_concurrent - running, ahead - (state.accepted + running))


def is_stale(oldest: int, version: int, max_staleness: int) -> bool:
    """Whether a rollout whose oldest segment is of version `oldest` is too old at `version`."""
    return version - oldest > max_staleness


def step(state: State, event: Event, limits: Limits) -> tuple[State, dict[str, Any]]:
    """(the state after an event, the log's record of it).

    The record is {"event", "capacity" before anything started, "admitted": ids to start now, "discarded": ids that
    have grown too old, to be stopped or thrown away}. Raises ValueError on an unknown event and on ids that are not
    where the event says.
    """
    op = event.get("op")
    if op not in TRANSITIONS:
        raise ValueError(f"op is {op!r}{nearest(str(op), TRANSITIONS)}; expected one of {', '.join(TRANSITIONS)}")
    state, discarded = TRANSITIONS[op](state, event, limits)
    room = capacity(state, limits)
    admitted = state.pending[: max(0, room)]
    state = dataclasses.replace(
        state, running=tuple(sorted(state.running + admitted)), pending=state.pending[len(admitted) :]
    )
    record = {"event": dict(event), "capacity": room, "admitted": list(admitted), "discarded": discarded}
    return state, record


def _submit(state: State, event: Event, limits: Limits):
    del limits
    ids = tuple(event["ids"])
    known = {*state.pending, *state.running, *state.oldest}
    for i, rollout in enumerate(ids):
        if rollout in known or rollout in ids[:i]:
            raise ValueError(f"rollout {rollout} was submitted before; give every rollout an id of its own")
    return dataclasses.replace(state, pending=state.pending + ids), []


def _segment(state: State, event: Event, limits: Limits):
    del limits
    rollout = _running(state, event)
    return dataclasses.replace(state, oldest={rollout: state.version, **state.oldest}), []


def _finish(state: State, event: Event, limits: Limits):
    del limits
    rollout = _running(state, event)
    state = _without(state, {rollout}, forget=not event["accepted"])
    return dataclasses.replace(state, accepted=state.accepted + bool(event["accepted"])), []


def _consume(state: State, event: Event, limits: Limits):
    del limits
    for rollout in event["ids"]:
        if rollout not in state.oldest or rollout in state.running:
            raise ValueError(f"rollout {rollout} cannot be trained on; it is not among the accepted ones that wait")
    return _without(state, set(event["ids"]), forget=True), []


def _version(state: State, event: Event, limits: Limits):
    """Only here a rollout grows too old. An accepted one gives its place back, or the trainer would wait for ever."""
    del event
    version = state.version + 1
    stale = {i for i, oldest in state.oldest.items() if is_stale(oldest, version, limits.max_staleness)}
    accepted = state.accepted - len(stale - set(state.running))
    return dataclasses.replace(_without(state, stale, forget=True), version=version, accepted=accepted), sorted(stale)


TRANSITIONS = {
    "submit": _submit,
    "segment": _segment,
    "finish": _finish,
    "consume": _consume,
    "version": _version,
}


def _running(state: State, event: Event) -> int:
    if event["id"] not in state.running:
        raise ValueError(f"rollout {event['id']} is not running (op {event['op']!r}); running are {state.running}")
    return event["id"]


def _without(state: State, ids: set[int], *, forget: bool) -> State:
    """Out of the running ones; `forget` says that their age matters no more."""
    running = tuple(i for i in state.running if i not in ids)
    oldest = {i: version for i, version in state.oldest.items() if i not in ids} if forget else state.oldest
    return dataclasses.replace(state, running=running, oldest=oldest)
