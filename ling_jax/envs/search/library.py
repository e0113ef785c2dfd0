"""The tools of a universe: a search engine over pages, three apps, and the reading of what they find."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ling_jax.envs.search.fields import CALENDAR, CONTACTS, MAILS, PAGES
from ling_jax.envs.search.index import Document, Index, snippet
from ling_jax.envs.tools.call import NOUN, ToolError, tool

RESULTS = 5  # on a page; our choice
PAGE = {"type": "integer", "minimum": 1, "maximum": 1000}


class Library(NamedTuple):
    """The documents of a universe, indexed; made once for all episodes of a task."""

    documents: Mapping[str, Document]  # by id
    indices: Mapping[str, Index]  # by app


class Desk(NamedTuple):
    """What the tools of an episode work on."""

    library: Library
    read: frozenset[str] = frozenset()  # ids of documents that were shown as a whole


def make_library(documents: Sequence[Document]) -> Library:
    """The library of these documents, with a search engine for each app that has some."""
    apps = dict.fromkeys(document.app for document in documents)
    indices = {app: Index([each for each in documents if each.app == app]) for app in apps}
    return Library({document.id: document for document in documents}, indices)


def search(desk: Desk, query: str, page: int):
    return _find(desk, PAGES, query, page)


def contacts(desk: Desk, query: str, page: int):
    return _find(desk, CONTACTS, query, page)


def calendar(desk: Desk, query: str, page: int):
    return _find(desk, CALENDAR, query, page)


def mails(desk: Desk, query: str, page: int):
    return _find(desk, MAILS, query, page)


def open(desk: Desk, id: str):
    document = known_document(desk.library, id)
    return Desk(desk.library, desk.read | {id}), f"{document.title}: {document.text}"


def known_document(library: Library, id: str) -> Document:
    """The document of an id, or a ToolError that says where ids are from."""
    if id not in library.documents:
        raise ToolError(f"no document {id[:20]!r}; ids stand at the beginning of results, and in pages in brackets")
    return library.documents[id]


def _find(desk: Desk, app: str, query: str, page: int) -> tuple[Desk, str]:
    found = desk.library.indices[app].ranked(query)
    shown = found[(page - 1) * RESULTS : page * RESULTS]
    if not shown:
        raise ToolError(f"page {page} of {-(-len(found) // RESULTS)}; nothing more" if found else "nothing found")
    lines, read = [f"{len(found)} found"], set(desk.read)
    for document in shown:
        text = snippet(document.text, query)
        lines.append(f"{document.id} {document.title}: {text}")
        read |= {document.id} if text == document.text else set()
    return Desk(desk.library, frozenset(read)), "\n".join(lines)


_FINDER = {"query": NOUN, "page": PAGE}
TOOLS = (
    tool(search, "Searches all web pages for words; five results a page, the best first.", _FINDER, changes=False),
    tool(contacts, "Searches the cards of the contacts for words.", _FINDER, changes=False),
    tool(calendar, "Searches the meetings of the calendar for words.", _FINDER, changes=False),
    tool(mails, "Searches the mails for words.", _FINDER, changes=False),
    tool(open, "Shows a web page, a card, a meeting or a mail as a whole.", {"id": NOUN}, changes=False),
)
