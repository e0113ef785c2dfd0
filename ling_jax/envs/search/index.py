"""Documents and a search engine over them: BM25 with the usual constants, results a page at a time."""

import collections
import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

K1, B = 1.2, 0.75  # Robertson & Zaragoza 2009, §3.4
MAX_SNIPPET = 90  # characters; our choice
WORD = re.compile(r"\w+")
SENTENCE = re.compile(r"(?<=[.;])\s+")


class Document(NamedTuple):
    id: str
    app: str  # the tool that finds it
    title: str
    text: str


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD.findall(text.lower())


class Index:
    """A search engine over the titles and texts of documents."""

    def __init__(self, documents: Sequence[Document]):
        self.documents = documents

    @functools.cached_property
    def _counts(self) -> tuple[dict[str, list[tuple[int, int]]], list[float]]:
        """(word -> [(document, how often it has the word)], the documents' norms by length), counted when needed."""
        postings: dict[str, list[tuple[int, int]]] = {}
        found = [words(f"{document.title} {document.text}") for document in self.documents]
        for number, there in enumerate(found):
            for word, times in collections.Counter(there).items():
                postings.setdefault(word, []).append((number, times))
        mean = sum(map(len, found)) / max(1, len(found))
        return postings, [K1 * (1 - B + B * len(there) / mean) for there in found]

    def ranked(self, query: str) -> list[Document]:
        """The documents that hold a word of the query, best first; of equal ones the earlier."""
        scores: dict[int, float] = {}
        postings, norms = self._counts
        for word in dict.fromkeys(words(query)):
            found = postings.get(word, ())
            weight = math.log(1 + (len(self.documents) - len(found) + 0.5) / (len(found) + 0.5))
            for number, times in found:
                gain = weight * times * (K1 + 1) / (times + norms[number])
                scores[number] = scores.get(number, 0.0) + gain
        return [self.documents[number] for number in sorted(scores, key=lambda number: (-scores[number], number))]


def snippet(text: str, query: str) -> str:
    """The first of the sentences that hold most words of a query, cut to `MAX_SNIPPET` characters."""
    wanted = set(words(query))
    best = max(SENTENCE.split(text), key=lambda sentence: len(wanted.intersection(words(sentence))))
    return best if len(best) <= MAX_SNIPPET else best[: MAX_SNIPPET - 1] + "…"
