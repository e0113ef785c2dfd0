"""Chats that go on from an earlier answer of their session: the tokens that were drawn stay as they were drawn.

A client sends the conversation back as messages. A template may write an answer with other tokens than the model did:
its thinking left out, a call with other blanks, another token at its end. So what was drawn is kept, and only the rest
of the turn, the new messages and the next opening are rendered (`ling_jax.chat.continuation`).
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from tokenizers import Tokenizer

from ling_jax.chat.continuation import continue_conversation
from ling_jax.chat.end_tokens import token_texts
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate, encode
from ling_jax.serve.calls import Call

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Chat:
    """What the prompt of a chat was made of."""

    messages: Sequence[Message]  # as the client gave them, in our form
    history: Sequence[Message]  # the same with earlier answers of the session as they were drawn
    tools: Sequence[Any]
    template: ChatTemplate | FolderTemplate  # as the request asks for it
    renders: ChatTemplate | FolderTemplate  # as the prompt was rendered
    size: int  # bytes of messages and tools, about


def continued(
    tokenizer: Tokenizer, end_ids: Collection[int], calls: Sequence[Call], chat: Chat
) -> tuple[list[int], Chat] | None:
    """(the prompt of a chat that goes on from one of these calls, the chat with its history); None where none fits, or
    where the template cannot go on from what was drawn."""
    order = sorted(range(len(calls)), key=lambda i: (len(calls[i].messages), i), reverse=True)
    for call in (calls[i] for i in order):
        if call.chat is None or not _goes_on(call, chat):
            continue
        try:
            return _go_on(tokenizer, end_ids, call, chat)
        except ValueError:  # the template would write the answer in another way
            return None
    return None


def _goes_on(call: Call, chat: Chat) -> bool:
    """Whether the chat's messages begin with those of the call and its answer, and are rendered by the same template
    with the same tools."""
    size = len(call.messages)
    return (
        len(chat.messages) >= size
        and (call.chat.template, list(call.chat.tools)) == (chat.template, list(chat.tools))
        and all(map(is_same, chat.messages[:size], call.messages))
    )


def is_same(one: Message, other: Message) -> bool:
    """Whether two messages say the same: role, content, calls by name and arguments. Reasoning may be missing."""
    reasoning = [text for message in (one, other) if (text := message.get("reasoning"))]
    return _said(one) == _said(other) and len(set(reasoning)) <= 1


def _said(message: Message) -> tuple[Any, ...]:
    calls = [(call["name"], call["arguments"]) for call in message.get("tool_calls") or ()]
    return message["role"], message.get("content") or "", calls


def _go_on(tokenizer: Tokenizer, end_ids: Collection[int], call: Call, chat: Chat) -> tuple[list[int], Chat]:
    drawn = call.drawn.tolist()
    ended = drawn[-1] in end_ids
    words = tokenizer.decode(drawn[:-1] if ended else drawn, skip_special_tokens=False)
    later, template = chat.messages[len(call.messages) :], call.chat.renders
    answer, pieces = continue_conversation(
        template,
        call.chat.history,
        words,
        later,
        tools=chat.tools,
        end_tokens=token_texts(tokenizer, end_ids),
        ended=ended,
    )
    prompt = [*call.context.tolist(), *encode(tokenizer, pieces)[0]]
    history = [*call.chat.history, answer, *later]
    return prompt, dataclasses.replace(chat, history=history, renders=template)
