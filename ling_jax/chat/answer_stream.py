"""An answer's text as it comes, split into reasoning, content and tool calls."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ling_jax.chat.json_text import bracketed_end
from ling_jax.chat.tool_calls import BLANKS, CALL, END_THINK, ENDS, OPENING, Call, read_call, text_parameters

MAY_OPEN = re.compile(r"\s*+(?:<(?:t(?:h(?:i(?:n(?:k)?)?)?)?)?)?\Z")  # blanks, and a beginning of <think>
MARKS = {"content": (CALL,), "reasoning": (CALL, END_THINK)}


class Part(NamedTuple):
    """A piece of an answer: text of its content or reasoning, or a call."""

    kind: str  # "content", "reasoning" or "call"
    text: str = ""
    call: Call | None = None


class AnswerStream:
    """The parts of one answer; put together they are what `parse_either` reads in the whole text.

    Text that may become a mark or a call waits. Where a call cannot be read, it is text like any other. `opened` is
    <think> where the prompt ends with it. With `calls` False, calls are text.
    """

    def __init__(self, tools: Iterable[Any] = (), *, opened: str = "", calls: bool = True):
        self._parameters, self._calls = text_parameters(tools), calls
        self._text, self._kind = opened, ""  # what is not given out yet; the kind of its beginning, "" not yet known
        self._at = 0  # from here on marks are looked for
        self._waits = False  # for the rest of a call

    def add(self, text: str, *, last: bool = False) -> list[Part]:
        """The parts that are certain after this text; all of the rest where it is the `last`."""
        self._text += text
        if self._waits and not last and ">" not in text:  # each mark ends with it
            return []
        self._waits = False
        return [part for part in self._parts(last) if part.text or part.call is not None]

    def _parts(self, last: bool) -> Iterator[Part]:
        if not self._kind and not self._begin(last):
            return
        while mark := ENDS[self._kind].search(self._text, self._at):
            if mark[0] == END_THINK:
                yield Part("reasoning", self._text[: mark.start()])
                self._cut(mark.end(), "content")
                continue
            if not self._calls:
                self._at = mark.end()
                continue
            before = self._before_mark(mark.start())
            call, stop = read_call(self._text, mark.end(), self._parameters)
            if call is not None:
                yield Part(self._kind, self._text[:before])
                yield Part("call", call=call)
                self._cut(stop, "content")
            elif last or self._is_decided(mark.end(), stop):
                ended = self._text.find(END_THINK, mark.end(), stop) if self._kind == "reasoning" else -1
                self._at = stop if ended < 0 else ended
            else:
                yield Part(self._kind, self._text[:before])
                self._cut(before, self._kind, mark.start() - before)
                self._waits = True
                return
        certain = len(self._text) if last else self._before_mark(len(self._text) - self._may_become_mark())
        yield Part(self._kind, self._text[:certain])
        self._cut(certain, self._kind, max(self._at - certain, 0))

    def _begin(self, last: bool) -> bool:
        """Whether it is known now how the answer begins."""
        if opening := OPENING.match(self._text):
            self._cut(opening.end(), "reasoning")
        elif last or not MAY_OPEN.match(self._text):
            self._kind = "content"
        return bool(self._kind)

    def _cut(self, start: int, kind: str, at: int = 0) -> None:
        self._text, self._kind, self._at = self._text[start:], kind, at

    def _before_mark(self, start: int) -> int:
        """The end of the text before a mark: a newline before a call belongs to the call."""
        return start - (self._calls and start > 0 and self._text[start - 1] == "\n")

    def _may_become_mark(self) -> int:
        """Characters at the end with which a mark may begin."""
        tail = self._text[self._at :]
        return max((n for mark in MARKS[self._kind] for n in range(1, len(mark)) if tail.endswith(mark[:n])), default=0)

    def _is_decided(self, start: int, stop: int) -> bool:
        """Whether no further text makes a call of what could not be read from `start` on, up to `stop`."""
        body = BLANKS.match(self._text, start).end()
        if self._text.startswith(("{", "["), body) and not bracketed_end(self._text, body)[1]:
            return False  # a string in it may have no end yet
        return stop < len(self._text)
