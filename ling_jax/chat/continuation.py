"""How a conversation goes on behind an answer that a model has just written, token by token."""

from collections.abc import Collection, Sequence
from typing import Any

from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate, Piece, opens_reasoning
from ling_jax.chat.tool_calls import END_THINK, THINK, as_message, parse_either

Message = dict[str, Any]


class UnreadableAnswer(ValueError):
    """The words of an answer are not the form in which the template writes an answer: the model's mistake."""


def go_on(
    template: ChatTemplate | FolderTemplate,
    messages: Sequence[Message],
    words: str,
    observation: Sequence[Message],
    *,
    tools: Sequence[dict] = (),
    end_tokens: Collection[str],
) -> tuple[Message, list[Piece]]:
    """(the answer to `messages` as a message, what a model reads behind its end token before it answers again).

    `words` are the answer as it was written, without the end token; `observation` are the messages that follow. What
    was read, the words and what is read now are together the template's rendering:

        rendering up to the answer | words | end token | what stands behind it, the observation, the next opening

    The message is the one that the words parse to or, where the template writes its calls in another way, has them in
    its content. Raises UnreadableAnswer where the template would write the words in another way, such as with an end to
    reasoning that was never closed, and another ValueError where it changes what was read, or the words once they are
    followed by the observation.
    """
    (opened,) = template.renderings(messages, [(len(messages), True)], tools=tools)
    read = _text(opened)
    for answer in _readings(words, opened, tools):
        whole = [*messages, answer, *observation]
        closed, later = template.renderings(whole, [(len(messages) + 1, False), (len(whole), True)], tools=tools)
        end = _behind(later, read + words)
        if end and end[0].text in end_tokens:
            return answer, _behind(later, read + words + end[0].text)
        if _behind(closed, read) is None:
            raise ValueError("the chat template rewrites history before an answer")
        if _behind(closed, read + words):
            raise ValueError("the chat template rewrites history behind an answer")
    raise UnreadableAnswer("the chat template writes an answer in another way than the model did")


def _readings(words: str, opened: Sequence[Piece], tools: Sequence[dict]) -> list[Message]:
    """As messages: all parts apart, then with the calls in the content, then with the reasoning in it too."""
    text = (THINK if opens_reasoning(opened) else "") + words
    parsed = parse_either(text, tools)
    found = [] if parsed.errors else [as_message(parsed)]
    reasoning, closed, content = text.partition(END_THINK)
    if closed and reasoning.startswith(THINK):
        found.append({"role": "assistant", "content": content, "reasoning": reasoning.removeprefix(THINK)})
    return [*found, {"role": "assistant", "content": words}]


def _behind(pieces: Sequence[Piece], start: str) -> list[Piece] | None:
    """The pieces behind a text that they begin with; None where they do not, or it ends within a special token."""
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
