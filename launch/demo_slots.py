"""The figure of the slots: which rollouts generated in which slot, and how old their first tokens were."""

import html
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MAX_AGE = 4  # a colour for each number of weight versions, the last for this many and more
MAX_TICKS = 8  # labels below the figure


class Span(NamedTuple):
    """A rollout that holds a slot for some pieces of decoding, `age` versions after its first token."""

    slot: int
    start: int
    stop: int
    rollout: int
    age: int


def slot_spans(events: Iterable[Mapping[str, Any]]) -> tuple[list[Span], list[int]]:
    """(who held which slot, the pieces that new weights begin with), from the log of a run.

    A rollout that goes on under new weights is shown in the slot that it had; no token depends on its slot.
    """
    held: dict[int, int] = {}  # rollout -> slot, of those that have not ended
    first: dict[int, int] = {}  # rollout -> version of its first token
    spans, updates, offset = [], [], 0
    for event in (event for event in events if event["kind"] == "generated"):
        updates.append(offset)
        rollouts = {int(name): values for name, values in event["rollouts"].items()}
        held = {i: slot for i, slot in held.items() if i in rollouts}
        until = dict.fromkeys(held.values(), math.inf)  # slot -> the piece in which it is free; all others are
        for i, (start, stop, _, status) in sorted(rollouts.items(), key=lambda item: (item[1][0], item[0])):
            slot = held.get(i)
            if slot is None:
                slot = next(slot for slot in itertools.count() if until.get(slot, 0) <= start)
            until[slot] = stop if status != "running" else math.inf
            age = event["version"] - first.setdefault(i, event["version"])
            spans.append(Span(slot, offset + start, offset + stop, i, age))
            held[i] = slot
        held = {i: slot for i, slot in held.items() if rollouts[i][-1] == "running"}
        offset += event["pieces"]
    return sorted(spans), updates


def slots(events: Iterable[Mapping[str, Any]]) -> str:
    """Which rollouts held the slots over the steps: a row a slot, a colour an age, a line an update of the weights."""
    spans, updates = slot_spans(events)
    if not spans:
        return ""
    width, height = max(span.stop for span in spans), 1 + max(span.slot for span in spans)
    begun: set[int] = set()
    paths: dict[int, str] = {}
    for span in sorted(spans, key=lambda span: span.start):
        gap = 0 if span.rollout in begun else 0.15  # before a rollout begins
        begun.add(span.rollout)
        size = span.stop - span.start - gap
        age = min(span.age, MAX_AGE)
        paths[age] = paths.get(age, "") + f"M{span.start + gap:g} {span.slot + 0.1:g}h{size:g}v.8h-{size:g}z"
    drawn = "".join(f'<path d="{path}" fill="var(--s{age})"/>' for age, path in sorted(paths.items()))
    lines = "".join(f"M{piece} 0v{height}" for piece in updates[1:])
    every = math.ceil(len(updates) / MAX_TICKS)
    ticks = "".join(
        f'<span style="left:{100 * piece / width:.2f}%">{number + 1}</span>'
        for number, piece in enumerate(updates)
        if number % every == 0
    )
    ages = [f"{age}{' or more' if age == MAX_AGE else ''}" for age in sorted(paths)]
    key = "".join(
        f'<span><i style="background:var(--s{age})"></i>{html.escape(name)}</span>'
        for age, name in zip(sorted(paths), ages, strict=True)
    )
    crossing = len({span.rollout for span in spans if span.age > 0})
    return (
        f'<div class="card slots"><b>Slots: which rollouts held them</b><div class=key>weight versions since the '
        f'first token: {key}</div><svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="Slots">{drawn}<path class=update d="{lines}"/></svg><div class=ticks>{ticks}</div>'
        f"<p class=caption>A row is one of {height} slots, a box a rollout, a vertical line an update of the weights; "
        f"numbers are steps. {crossing} of {len(begun)} rollouts went on under newer weights than they began with."
        "</p></div>"
    )
