"""What the only tool of the environment `lookup` answers, and what comes of it. The standard library is enough.

hidden   "store": {name: number}; "calls": those that the task needs, in order; "answer": the sum
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ling_jax.envs.reasoning.answers import is_text
from ling_jax.envs.tools.call import NOUN, Call, KitState, Message, Tool, ToolError, call_tool, tool


def get(state: KitState, name: str):
    if name not in state:
        raise ToolError(f"no {name[:1]!r}")  # short, as all that a small model reads
    return state, state[name]


GET = tool(get, "The number behind a name.", {"name": NOUN}, changes=False)


class Episode(NamedTuple):
    hidden: Mapping[str, Any]
    calls: tuple[Call, ...] = ()  # those that were answered with a number
    made: int = 0  # calls that could be read, answered or not
    answer: str = ""  # the words that ended the episode
    ended: bool = False


def begin(hidden: Mapping[str, Any]) -> Episode:
    """The episode before the first turn."""
    return Episode(hidden)


def offered(hidden: Mapping[str, Any]) -> list[Tool]:
    """The only tool."""
    del hidden
    return [GET]


def act(episode: Episode, call: Call) -> tuple[Episode, Message, str | None]:
    """(the episode after a call, what the tool answers, what was wrong with the call or None)."""
    _, number, error = call_tool({GET.name: GET}, episode.hidden["store"], call)
    episode = episode._replace(made=episode.made + 1)
    if error is not None:
        return episode, refused(error), error
    return episode._replace(calls=(*episode.calls, call)), _says(str(number)), None


def hear(episode: Episode, words: str) -> tuple[Episode, list[Message]]:
    """(the episode, which words end, no answer)."""
    return episode._replace(answer=words, ended=True), []


def refused(error: str) -> Message:
    """The message of a mistake."""
    return _says(error)


def rewards(episode: Episode) -> dict[str, float]:
    """What the episode is worth as it is.

    "answer" (right, as in `envs.reasoning`), "sequence" (all names that were asked for were got, in their order,
    whatever was got besides), "outcome" (both) and "superfluous_calls" (calls more than were needed).
    """
    wanted, made = episode.hidden["calls"], iter(episode.calls)
    in_order = all(any(call == wish for call in made) for wish in wanted)
    solved = is_text(episode.answer, episode.hidden["answer"])
    return {
        "outcome": float(solved and in_order),
        "answer": float(solved),
        "sequence": float(in_order),
        "superfluous_calls": float(max(0, episode.made - len(wanted))),
    }


def _says(content: str) -> Message:
    return {"role": "tool", "content": content}
