"""What the tools of a search show, and what comes of an answer. The standard library is enough.

hidden   "answer", "aliases": what is right; "evidence": id of the document that holds it; "calls": of the reference
         "documents": [[id, app, title, text], …]; tasks that are not exported have the seed of their universe instead
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ling_jax.envs.search.answers import is_answer
from ling_jax.envs.search.index import Document
from ling_jax.envs.search.library import TOOLS, Desk, make_library
from ling_jax.envs.search.notes import APP, SEARCH
from ling_jax.envs.tools.call import Call, Message, Tool, call_tool


class Episode(NamedTuple):
    hidden: Mapping[str, Any]
    desk: Desk
    made: int = 0  # calls that could be read, carried out or not
    answer: str = ""  # the words that ended the episode
    ended: bool = False


def begin(hidden: Mapping[str, Any]) -> Episode:
    """The episode of an exported task before the first turn."""
    return Episode(hidden, Desk(make_library([Document(*fields) for fields in hidden["documents"]])))


def offered(hidden: Mapping[str, Any]) -> tuple[Tool, ...]:
    """The tools of an exported task."""
    return _tools(app for _, app, *_ in hidden["documents"])


def act(episode: Episode, call: Call) -> tuple[Episode, Message, str | None]:
    """(the episode after a call, what its tool shows, what was wrong with the call or None)."""
    tools = {tool.name: tool for tool in _tools(episode.desk.library.indices)}
    desk, result, error = call_tool(tools, episode.desk, call)
    return episode._replace(desk=desk, made=episode.made + 1), _shows(result if error is None else error), error


def hear(episode: Episode, words: str) -> tuple[Episode, list[Message]]:
    """(the episode, which words end, no answer)."""
    return episode._replace(answer=words, ended=True), []


def refused(error: str) -> Message:
    """The message of a mistake."""
    return _shows(error)


def rewards(episode: Episode) -> dict[str, float]:
    """What the episode is worth as it is.

    "outcome" (the answer is right), "found" (the document that holds it was read), "calls" (how many were made) and
    "superfluous_calls" (how many more than the reference's).
    """
    hidden = episode.hidden
    return {
        "outcome": float(is_answer(episode.answer, [hidden["answer"], *hidden["aliases"]])),
        "found": float(hidden["evidence"] in episode.desk.read),
        "calls": float(episode.made),
        "superfluous_calls": float(max(0, episode.made - len(hidden["calls"]))),
    }


def _tools(apps: Iterable[str]) -> tuple[Tool, ...]:
    """One search for notes, else five tools."""
    return (SEARCH,) if APP in apps else TOOLS


def _shows(content: str) -> Message:
    return {"role": "tool", "content": content}
