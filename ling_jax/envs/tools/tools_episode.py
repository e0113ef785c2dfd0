"""What the tools of the environment `tools` answer, and what comes of it. The standard library is enough.

hidden   "world": {toolkit: state}, "goal": the world as it should become; "calls": those that the task needs, in order
         "offered": names of tools; tasks that are not exported have their schemas instead
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ling_jax.envs.tools import bank, calendar, inventory
from ling_jax.envs.tools.call import Call, Message, Tool, World, carry_out, told

KITS = {kit.NAME: kit for kit in (bank, calendar, inventory)}
TOOLS: dict[str, tuple[str, Tool]] = {t.name: (kit.NAME, t) for kit in KITS.values() for t in kit.TOOLS}


class Episode(NamedTuple):
    hidden: Mapping[str, Any]
    offered: Sequence[str]
    world: World
    changes: tuple[Call, ...] = ()  # the calls that were carried out, those that only read aside
    made: int = 0  # calls that could be read, carried out or not
    ended: bool = False


def begin(hidden: Mapping[str, Any]) -> Episode:
    """The episode of an exported task before the first turn."""
    return Episode(hidden, hidden["offered"], hidden["world"])


def offered(hidden: Mapping[str, Any]) -> list[Tool]:
    """The tools of an exported task."""
    return [TOOLS[name][1] for name in hidden["offered"]]


def act(episode: Episode, call: Call) -> tuple[Episode, Message, str | None]:
    """(the episode after a call, what its tool answers, what was wrong with the call or None)."""
    tools = {name: TOOLS[name] for name in episode.offered}
    world, result, error = carry_out(tools, episode.world, call)
    episode = episode._replace(world=world, made=episode.made + 1)
    if error is not None:
        return episode, refused(error), error
    if TOOLS[call["name"]][1].changes:
        episode = episode._replace(changes=(*episode.changes, call))
    return episode, told(result), None


def hear(episode: Episode, words: str) -> tuple[Episode, list[Message]]:
    """(the episode, which any words end, no answer)."""
    del words
    return episode._replace(ended=True), []


def refused(error: str) -> Message:
    """The message of a mistake."""
    return told({"error": error})


def rewards(episode: Episode) -> dict[str, float]:
    """What the episode is worth as it is.

    "state" (the world is as it should be), "sequence" (the calls that change something are the right ones, in order,
    none besides), "outcome" (both) and "superfluous_calls" (calls more than were needed).
    """
    hidden = episode.hidden
    right_state = episode.world == hidden["goal"]
    right_calls = list(episode.changes) == [call for call in hidden["calls"] if TOOLS[call["name"]][1].changes]
    return {
        "outcome": float(right_state and right_calls),
        "state": float(right_state),
        "sequence": float(right_calls),
        "superfluous_calls": float(max(0, episode.made - len(hidden["calls"]))),
    }
