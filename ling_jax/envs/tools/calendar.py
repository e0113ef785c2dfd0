"""A week of meetings: each has a title and an hour of its own."""

import random

from ling_jax.envs.tools.call import NOUN, Call, KitState, ToolError, known, tool

NAME = "calendar"
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday")
HOURS = range(8, 19)
TITLES = (
    *("review", "standup", "budget", "hiring", "planning", "demo", "retro", "training", "lunch", "audit"),
    *("kickoff", "handover", "workshop", "interview", "briefing", "offsite", "survey", "seminar"),
)


def calendar_find(state: KitState, title: str):
    day, hour = known(state, title, "meeting")
    return state, {"title": title, "day": day, "hour": hour}


def calendar_add(state: KitState, title: str, day: str, hour: int):
    if title in state:
        raise ToolError(f"there is a meeting {title!r} already")
    return _place(state, title, day, hour)


def calendar_move(state: KitState, title: str, day: str, hour: int):
    known(state, title, "meeting")
    return _place(state, title, day, hour)


def calendar_cancel(state: KitState, title: str):
    known(state, title, "meeting")
    return {name: slot for name, slot in state.items() if name != title}, {"cancelled": title}


def _place(state: KitState, title: str, day: str, hour: int):
    for other, slot in state.items():
        if list(slot) == [day, hour]:
            raise ToolError(f"{other!r} is on {day} at {hour}; choose a free hour")
    return {**state, title: [day, hour]}, {"title": title, "day": day, "hour": hour}


SLOT = {
    "title": NOUN,
    "day": {"type": "string", "enum": list(DAYS)},
    "hour": {"type": "integer", "minimum": HOURS[0], "maximum": HOURS[-1]},
}
TOOLS = (
    tool(calendar_find, "The day and hour of a meeting.", {"title": NOUN}, changes=False),
    tool(calendar_add, "Puts a new meeting into the calendar.", SLOT, changes=True),
    tool(calendar_move, "Moves a meeting to another day and hour.", SLOT, changes=True),
    tool(calendar_cancel, "Takes a meeting out of the calendar.", {"title": NOUN}, changes=True),
)


def initial(rng: random.Random) -> KitState:
    slots = rng.sample(_free({}), 4)
    return dict(zip(rng.sample(TITLES, 4), slots, strict=True))


def request(rng: random.Random, state: KitState, most: int) -> tuple[str, list[Call]]:
    """(a wish in words, the calls that fulfil it, at most `most`)."""
    free = _free(state)
    day, hour = rng.choice(free)
    unused = [title for title in TITLES if title not in state]
    later = [t for t, (d, h) in state.items() if [d, h + 1] in free] if most >= 2 else []
    kinds = ["add"] * bool(unused) + ["move"] * bool(state) + ["cancel"] * (len(state) > 1) + ["later"] * bool(later)
    kind = rng.choice(kinds)
    title = rng.choice({"add": unused, "later": later}.get(kind, list(state)))
    if kind == "add":
        return f"Add a meeting called {title} on {day} at {hour}:00.", [_slot_call("calendar_add", title, day, hour)]
    if kind == "move":
        return f"Move the meeting {title} to {day} at {hour}:00.", [_slot_call("calendar_move", title, day, hour)]
    if kind == "cancel":
        return f"Cancel the meeting {title}.", [{"name": "calendar_cancel", "arguments": {"title": title}}]
    day, hour = state[title]
    read = {"name": "calendar_find", "arguments": {"title": title}}
    return f"Move the meeting {title} to one hour later.", [read, _slot_call("calendar_move", title, day, hour + 1)]


def _slot_call(name: str, title: str, day: str, hour: int) -> Call:
    return {"name": name, "arguments": {"title": title, "day": day, "hour": hour}}


def _free(state: KitState) -> list[list]:
    taken = [list(slot) for slot in state.values()]
    return [[day, hour] for day in DAYS for hour in HOURS if [day, hour] not in taken]
