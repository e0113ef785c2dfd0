"""A reader who answers a question with the tools alone: it searches, opens what it was shown, and compares."""

import re
from typing import Any

from ling_jax.envs.search.fields import KINDS, PAGES
from ling_jax.envs.search.index import snippet
from ling_jax.envs.search.library import RESULTS, Library
from ling_jax.envs.search.question import NAME, Constraint, Question, fits
from ling_jax.envs.search.synthesis import Unsuitable
from ling_jax.envs.search.universe import Universe
from ling_jax.envs.tools.call import Call

MAX_PAGES = 8  # of one search, before a question is given up; our choice
LINK = re.compile(r"\[(\w+)\]")


def solve(universe: Universe, library: Library, question: Question, chain: list[str]) -> list[Call]:
    """Calls that lead along the chain. A document is opened only where its id was shown before.

    Raises Unsuitable where a search does not find what the chain needs on its first pages.
    """
    reader = _Reader(universe, library)
    reader.identify(question.kind, chain[0], KINDS[question.kind].app, question.constraints)
    kind = question.kind
    for hop, before, name in zip(question.hops, chain, chain[1:], strict=False):
        if hop.forward:
            reader.read(kind, before, hop.link)
        else:
            start = Constraint((hop.link,), (before,), "", before)
            reader.identify(hop.kind, name, KINDS[hop.kind].fields[hop.link].app, (start, *hop.constraints))
        kind = hop.kind
    reader.read(kind, chain[-1], question.asked)
    return reader.calls


class _Reader:
    """What has been called, shown and read so far."""

    def __init__(self, universe: Universe, library: Library):
        self.universe, self.library = universe, library
        self.calls: list[Call] = []
        self._shown: set[str] = set()
        self._read: set[str] = set()
        self._places = {(each.app, each.title): each.id for each in library.documents.values()}
        self._kinds = {name: kind for kind, things in universe.items() for name in things}

    def read(self, kind: str, name: str, field: str) -> Any:
        """The value of a thing's field, once the document that holds it has been read."""
        app = KINDS[kind].fields[field].app
        id = self._places[app, name]
        if id not in self._shown:
            self._search(app, name, id)
        if id not in self._read:
            self._open(id)
        return self.universe[kind][name][field]

    def identify(self, kind: str, wanted: str, app: str, constraints: tuple[Constraint, ...]) -> None:
        """Searches for words of the constraints, and compares the results one after the other up to the wanted one."""
        query = " ".join(constraint.words for constraint in constraints if constraint.words)
        for page in range(1, MAX_PAGES + 1):
            for id in self._find(app, query, page):
                name = self.library.documents[id].title
                if self._kinds[name] == kind and self._compare(kind, name, constraints) and name == wanted:
                    return
        raise Unsuitable(f"{wanted} is not on the first {MAX_PAGES} pages")

    def _compare(self, kind: str, name: str, constraints: tuple[Constraint, ...]) -> bool:
        """Reads what is needed to compare a thing with constraints, up to the first that it does not fit."""
        for constraint in constraints:
            at, where = kind, name
            for field in constraint.path:
                if field == NAME:
                    continue
                value = self.read(at, where, field)
                at, where = getattr(KINDS[at].fields[field], "kind", at), value
            if not fits(self.universe, kind, name, constraint):
                return False
        return True

    def _search(self, app: str, query: str, id: str) -> None:
        for page in range(1, MAX_PAGES + 1):
            if id in self._find(app, query, page):
                return
        raise Unsuitable(f"{query} is not on the first {MAX_PAGES} pages")

    def _find(self, app: str, query: str, page: int) -> list[str]:
        """The ids on a page of results. A card is shown there as a whole, since it is one sentence."""
        self.calls.append({"name": app, "arguments": {"query": query, "page": page}})
        found = self.library.indices[app].ranked(query)[(page - 1) * RESULTS : page * RESULTS]
        if not found:
            raise Unsuitable(f"{query}: no page {page}")
        ids = [document.id for document in found]
        self._shown.update(ids)
        self._read.update(each.id for each in found if snippet(each.text, query) == each.text)
        return ids

    def _open(self, id: str) -> None:
        self.calls.append({"name": "open", "arguments": {"id": id}})
        self._read.add(id)
        document = self.library.documents[id]
        if document.app == PAGES:
            self._shown.update(LINK.findall(document.text))
