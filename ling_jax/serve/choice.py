"""One answer as its events come: text, tokens, log-probs, versions; of chats also reasoning and calls."""

import dataclasses
from typing import Any

from ling_jax.chat.answer_stream import AnswerStream, Part
from ling_jax.engine.request import Event
from ling_jax.engine.text import TextStream
from ling_jax.serve.asked import Asked, Served

FINISH = {"end": "stop", "cancelled": "abort"}  # OpenAI has no name for the second; it is that of other servers
Top = tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Delta:
    """What an event adds to an answer."""

    text: str
    tokens: list[int]
    logps: list[float]
    tops: list[Top]  # of each token, or none
    finish: str  # "": not yet; "stop", "length", "tool_calls", "abort" or "error"
    version: int
    parts: list[Part] = dataclasses.field(default_factory=list)  # of a chat
    prompt_logps: tuple[float, ...] = ()
    error: str = ""


class Choice:
    """The answer to one of the engine's requests."""

    def __init__(self, served: Served, asked: Asked, number: int):
        self.request, self.asked, self.served = asked.requests[number], asked, served
        self.number = number
        self.deltas: list[Delta] = []  # of an answer that is sent whole
        self.drawn = self.cached = 0  # tokens of the answer; of its prompt, those that did not have to be read
        self._text = TextStream(served.tokenizer, self.request.stop_ids, asked.stop)

    def add(self, event: Event) -> Delta:
        """What the event adds; nothing may be added after a `finish`."""
        text, before = self._text.add(event), self.drawn
        self.drawn = len(self._text.tokens)
        self.cached += event.cached_tokens
        count, ended = self.drawn - before, self._text.ended
        delta = Delta(
            text,
            list(event.tokens[:count]),
            list(event.logps[:count]),
            list(event.top_logprobs[:count]),
            FINISH.get(ended, ended),
            event.version,
            prompt_logps=event.prompt_logps,
            error=event.error,
        )
        return self._with_parts(delta)

    def _with_parts(self, delta: Delta) -> Delta:
        return delta


class ChatChoice(Choice):
    """An answer whose text is split into reasoning, content and calls."""

    def __init__(self, served: Served, asked: Asked, number: int):
        super().__init__(served, asked, number)
        self._stream = AnswerStream(asked.tools, opened=asked.opened, calls=asked.reads_calls)
        self.calls = 0

    def _with_parts(self, delta: Delta) -> Delta:
        parts, finish = self._stream.add(delta.text, last=bool(delta.finish)), delta.finish
        if self.asked.one_call and (first := next((i for i, p in enumerate(parts) if p.call), None)) is not None:
            parts, finish = parts[: first + 1], finish or "stop"
        self.calls += sum(part.call is not None for part in parts)
        if finish == "stop" and self.calls:
            finish = "tool_calls"
        return dataclasses.replace(delta, parts=parts, finish=finish)


def version_runs(deltas: list[Delta]) -> list[list[int]]:
    """[[weight version, tokens], …] of consecutive tokens."""
    runs: list[list[int]] = []
    for delta in deltas:
        if runs and runs[-1][0] == delta.version:
            runs[-1][1] += len(delta.tokens)
        elif delta.tokens:
            runs.append([delta.version, len(delta.tokens)])
    return runs


def joined(deltas: list[Delta], name: str) -> list[Any]:
    """The lists of a field of all deltas, one after the other."""
    return [item for delta in deltas for item in getattr(delta, name)]


def answer_of(deltas: list[Delta]) -> dict[str, Any]:
    """The assistant's message of a chat, in the form of `chat.template`."""
    parts = joined(deltas, "parts")
    texts = {kind: "".join(p.text for p in parts if p.kind == kind) for kind in ("content", "reasoning")}
    message: dict[str, Any] = {"role": "assistant", "content": texts["content"]}
    message |= {"reasoning": texts["reasoning"]} if texts["reasoning"] else {}
    calls = [part.call for part in parts if part.call is not None]
    return message | ({"tool_calls": calls} if calls else {})
