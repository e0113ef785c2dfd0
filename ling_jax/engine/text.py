"""Texts instead of tokens: stop strings, and what may be shown while it is being written."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer

from ling_jax.engine.engine import Engine
from ling_jax.engine.generate import events_of, in_order
from ling_jax.engine.request import Event, Request

HALF_CHARACTER = "\ufffd"


@dataclasses.dataclass(frozen=True)
class Completion:
    """An answer, or what of it may be shown so far."""

    text: str  # without end token and stop string; other special tokens are their names
    tokens: list[int]
    logps: list[float]
    ended: str  # "": not yet; "end" token, "stop" string, "length", or "cancelled" or "error" of the last event


class TextStream:
    """The text of one request as its tokens come; the work grows with the number of tokens, not with its square.

    The text only grows: half a character, and what may become a stop string, wait.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: Iterable[int], stop: Sequence[str] = ()):
        self.tokens: list[int] = []
        self.logps: list[float] = []
        self.ended = ""
        self._tokenizer, self._end_ids, self._stop = tokenizer, frozenset(end_ids), tuple(stop)
        self._parts: list[str] = []  # of text that may be shown
        self._waiting = ""  # text that may not be shown yet
        self._first = self._next = 0  # tokens from which on, and up to which, text was made

    @property
    def text(self) -> str:
        """What may be shown."""
        return "".join(self._parts)

    def add(self, event: Event) -> str:
        """The text that the event adds. Tokens behind a stop string are dropped, and `ended` says "stop"."""
        before = len(self._parts)
        for token, logp in zip(event.tokens, event.logps, strict=True):
            self.tokens.append(token)
            self.logps.append(logp)
            if token in self._end_ids:
                self.ended = "end"
            elif self._grow():
                self.ended = "stop"
                break
        if not self.ended and event.finish_reason is not None:
            self.ended = "end" if event.finish_reason == "stop" else event.finish_reason
        if self.ended and self.ended != "stop":
            self._finish()
        return "".join(self._parts[before:])

    def completion(self) -> Completion:
        """The answer so far."""
        return Completion(self.text, list(self.tokens), list(self.logps), self.ended)

    def _grow(self) -> bool:
        """Takes the text of the last token; True where a stop string is whole."""
        # Decoded together with the tokens before: some decoders write a token differently where a text begins.
        told = self._decode(self._first, self._next)
        whole = self._decode(self._first, len(self.tokens))
        if whole.endswith(HALF_CHARACTER) or len(whole) <= len(told):
            return False
        self._first, self._next = self._next, len(self.tokens)
        self._waiting += whole[len(told) :]
        found = [at for at in map(self._waiting.find, self._stop) if at >= 0]
        if found:
            self._show(min(found))
            return True
        self._show(len(self._waiting) - self._may_become_stop())
        return False

    def _finish(self) -> None:
        size = len(self.tokens) - bool(self.tokens and self.tokens[-1] in self._end_ids)
        told, whole = self._decode(self._first, self._next), self._decode(self._first, size)
        self._waiting += whole[len(told) :]
        self._show(len(self._waiting))

    def _show(self, size: int) -> None:
        if size:
            self._parts.append(self._waiting[:size])
            self._waiting = self._waiting[size:]

    def _may_become_stop(self) -> int:
        """Characters at the end that a stop string may begin with."""
        text = self._waiting
        return max((size for s in self._stop for size in range(1, len(s)) if text.endswith(s[:size])), default=0)

    def _decode(self, first: int, stop: int) -> str:
        """As it was written: a special token in it, such as <think>, is its name."""
        return self._tokenizer.decode(self.tokens[first:stop], skip_special_tokens=False)


def stream(engine: Engine, tokenizer: Tokenizer, request: Request, stop: Sequence[str] = ()) -> Iterator[TextStream]:
    """One request's text, again after each of its events. Raises ValueError where it cannot be served."""
    text = TextStream(tokenizer, request.stop_ids, stop)
    for _, event in events_of(engine, [request]):
        text.add(event)
        if text.ended and request.id in engine.ids:  # ended by a stop string, in the middle of its turn
            engine.release(request.id)
        yield text


def complete(
    engine: Engine, tokenizer: Tokenizer, requests: Iterable[Request], stop: Sequence[str] = ()
) -> Iterator[Completion]:
    """The whole answers as texts, in the order of the requests. Raises ValueError where one cannot be served."""
    yield from in_order(_completions(engine, tokenizer, requests, stop))


def _completions(engine: Engine, tokenizer, requests, stop) -> Iterator[tuple[int, Completion]]:
    texts: dict[int, TextStream] = {}
    end_ids: dict[int, Sequence[int]] = {}

    def noted():
        for number, request in enumerate(requests):
            end_ids[number] = request.stop_ids
            yield request

    for number, event in events_of(engine, noted()):
        if number not in texts:
            texts[number] = TextStream(tokenizer, end_ids.pop(number), stop)
        texts[number].add(event)
        if texts[number].ended:
            if event.id in engine.ids:  # ended by a stop string, in the middle of its turn
                engine.release(event.id)
            yield number, texts.pop(number).completion()
