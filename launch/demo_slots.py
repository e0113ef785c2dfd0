"""The figure of the slots: which rollouts generated in which slot, and how old their first tokens were."""

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MAX_AGE = 4  # a colour for each number of weight versions, the last for this many and more
MAX_TICKS = 8  # labels below the figure


class Box(NamedTuple):
    """A rollout in a slot while it got tokens of one weight version, `age` versions after its first token."""

    slot: int
    start: float  # seconds since the first token
    stop: float
    rollout: int
    age: int


def slot_boxes(timeline: Iterable[Mapping[str, Any]]) -> tuple[list[Box], list[float]]:
    """(who held which slot, the seconds at which new weights begin to generate), from the timeline of a run.

    A rollout holds its slot from its first token to its last; no token depends on its slot.
    """
    spans = sorted(timeline, key=lambda span: (span["start"], span["rollout"]))
    first = spans[0]["start"] if spans else 0.0
    versions, stops, updates = {}, {}, {}
    for span in spans:
        versions.setdefault(span["rollout"], span["version"])
        stops[span["rollout"]] = max(span["stop"], stops.get(span["rollout"], 0.0))
        updates.setdefault(span["version"], span["start"] - first)
    slots, until = {}, []
    for span in spans:
        if (i := span["rollout"]) not in slots:
            slot = next((slot for slot, stop in enumerate(until) if stop <= span["start"]), len(until))
            until[slot : slot + 1] = [stops[i]]
            slots[i] = slot
    boxes = [
        Box(slots[i], span["start"] - first, span["stop"] - first, i, span["version"] - versions[i])
        for span in spans
        for i in [span["rollout"]]
    ]
    return sorted(boxes), sorted(updates.values())


def slots(timeline: Iterable[Mapping[str, Any]]) -> str:
    """Which rollouts held the slots over the time: a row a slot, a colour an age, a line an update of the weights."""
    boxes, updates = slot_boxes(timeline)
    if not boxes:
        return ""
    width, height = max(box.stop for box in boxes), 1 + max(box.slot for box in boxes)
    begun: set[int] = set()
    paths: dict[int, str] = {}
    for box in sorted(boxes, key=lambda box: box.start):
        gap = 0 if box.rollout in begun else 0.1 * (box.stop - box.start)  # before a rollout begins
        begun.add(box.rollout)
        size = box.stop - box.start - gap
        age = min(box.age, MAX_AGE)
        paths[age] = paths.get(age, "") + f"M{box.start + gap:g} {box.slot + 0.1:g}h{size:g}v.8h-{size:g}z"
    drawn = "".join(f'<path d="{path}" fill="var(--s{age})"/>' for age, path in sorted(paths.items()))
    lines = "".join(f"M{start:g} 0v{height}" for start in updates[1:])
    every = math.ceil(len(updates) / MAX_TICKS)
    ticks = "".join(
        f'<span style="left:{100 * start / width:.2f}%">{number + 1}</span>'
        for number, start in enumerate(updates)
        if number % every == 0
    )
    ages = [f"{age}{' or more' if age == MAX_AGE else ''}" for age in sorted(paths)]
    key = "".join(
        f'<span><i style="background:var(--s{age})"></i>{html.escape(name)}</span>'
        for age, name in zip(sorted(paths), ages, strict=True)
    )
    crossing = len({box.rollout for box in boxes if box.age > 0})
    return (
        f'<div class="card slots"><b>Slots: which rollouts held them</b><div class=key>weight versions since the '
        f'first token: {key}</div><svg viewBox="0 0 {width:g} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="Slots">{drawn}<path class=update d="{lines}"/></svg><div class=ticks>{ticks}</div>'
        f"<p class=caption>A row is one of {height} slots over {width:.0f} s, a box a rollout, a vertical line an "
        f"update of the weights; numbers are steps. {crossing} of {len(begun)} rollouts went on under newer weights "
        "than they began with."
        "</p></div>"
    )
