"""The text between two answers of a model: the rest of its turn, an observation, and the next opening."""

from collections.abc import Collection, Sequence
from typing import Any

from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate, Piece, opens_reasoning
from ling_jax.chat.tool_calls import END_THINK, THINK, as_message, parse_either

Message = dict[str, Any]


class UnreadableAnswer(ValueError):
    """The template would write this answer with other words; the model's mistake."""


def continue_conversation(
    template: ChatTemplate | FolderTemplate,
    messages: Sequence[Message],
    words: str,
    observation: Sequence[Message],
    *,
    tools: Sequence[dict] = (),
    end_tokens: Collection[str],
    ended: bool = True,
) -> tuple[Message, list[Piece]]:
    """(the answer to `messages` as a message, the pieces between its end token and the next answer).

    `words` are the answer without its end token; `observation` are the messages that follow. All parts together are the
    template's rendering:

        rendering up to the answer | words | end token | rest of the turn, the observation, the next opening

    Where the answer was cut off, not `ended`, the pieces begin with the end token. The message is parsed from the
    words; where the template writes its calls in another form, they stay in its content.
    Raises UnreadableAnswer where the template would write other words, for example by closing a reasoning that was not
    closed, and another ValueError where the template changes an earlier rendering, or the words after the observation.
    """
    (opened,) = template.renderings(messages, [(len(messages), True)], tools=tools)
    read = _text(opened)
    for answer in _readings(words, opened, tools):
        whole = [*messages, answer, *observation]
        (later,) = template.renderings(whole, [(len(whole), True)], tools=tools)
        end = _behind(later, read + words)
        if end and end[0].text in end_tokens:
            return answer, _behind(later, read + words + end[0].text) if ended else end
        (closed,) = template.renderings(whole, [(len(messages) + 1, False)], tools=tools)
        if _behind(closed, read) is None:
            raise ValueError("the chat template rewrites history before an answer")
        if _behind(closed, read + words):
            raise ValueError("the chat template rewrites history behind an answer")
    raise UnreadableAnswer("the chat template writes an answer in another way than the model did")


def _readings(words: str, opened: Sequence[Piece], tools: Sequence[dict]) -> list[Message]:
    """Possible messages of an answer: fully parsed, with calls in the content, with reasoning in the content too."""
    text = (THINK if opens_reasoning(opened) else "") + words
    parsed = parse_either(text, tools)
    found = [] if parsed.errors else [as_message(parsed)]
    reasoning, closed, content = text.partition(END_THINK)
    if closed and reasoning.startswith(THINK):
        found.append({"role": "assistant", "content": content, "reasoning": reasoning.removeprefix(THINK)})
    return [*found, {"role": "assistant", "content": words}]


def _behind(pieces: Sequence[Piece], start: str) -> list[Piece] | None:
    """The pieces after a text with which they start; None if they do not, or if it ends inside of a special token."""
    if not _text(pieces).startswith(start):
        return None
    left = len(start)
    for i, piece in enumerate(pieces):
        if left < len(piece.text):
            if left and piece.special:
                return None
            return [piece._replace(text=piece.text[left:]), *pieces[i + 1 :]]
        left -= len(piece.text)
    return []


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
