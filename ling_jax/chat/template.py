"""Conversations: messages -> pieces of text -> tokens and a loss mask (docs/chat.md).

A conversation is a list of messages {"role": "system" | "user" | "assistant" | "tool", "content": text}. A message of
an assistant may have "reasoning" and "tool_calls" [{"name", "arguments"}]; null counts as missing.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from ling_jax.chat.tool_calls import END_THINK, THINK, TOOL_FORMATS, render_call
from ling_jax.data.tokenizer import encode_documents
from ling_jax.messages import nearest

ROLES = ("system", "user", "assistant", "tool")
NAMES = {"system": "SYSTEM", "user": "HUMAN", "assistant": "ASSISTANT", "tool": "OBSERVATION"}
END = "<|role_end|>"
SWITCH = re.compile("detailed thinking (on|off)")
TOOLS_BLOCK = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{schemas}
</tools>

If no function fits, or a required parameter is missing, say so instead of calling one.
{format}
"""
XML_FORMAT = """Write each call as the function's name and its arguments, a value that is no string as JSON:
<tool_call>name
<arg_key>key</arg_key>
<arg_value>value</arg_value>
</tool_call>"""
CALL_FORMATS = {
    "xml": XML_FORMAT,
    "xml_lines": XML_FORMAT,
    "json": """Write each call as a JSON object with its name and arguments:
<tool_call>
{"name": "name", "arguments": {"key": "value"}}
</tool_call>""",
}


class Piece(NamedTuple):
    """A text that is special, or trained on, as a whole. A text that is not special is encoded as plain text."""

    text: str
    special: bool = False
    trained: bool = False


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """The default template of Ling and Ring. The pieces of a turn do not depend on other turns."""

    thinking: bool | None = None  # None: off
    effort: str | None = None  # "high", "xhigh"; None: the model's default
    tool_format: str = "xml"  # of `tool_calls.TOOL_FORMATS`

    def __post_init__(self):
        if self.tool_format not in TOOL_FORMATS:
            raise ValueError(f"tool_format is {self.tool_format!r}; it is one of {', '.join(TOOL_FORMATS)}")

    def render(self, messages: Sequence[dict], *, tools: Sequence[dict] = (), prompt: bool = False) -> list[Piece]:
        """The pieces of a conversation; `prompt` adds the opening of an assistant's turn.

        Raises ValueError that names a message which this template cannot write.
        """
        check_messages(messages)
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
        turns = [message for i, message in enumerate(messages) if i or message["role"] != "system"]
        pieces = _turn("system", [Piece(self._system(system, tools))])
        for i, message in enumerate(turns):
            where = f"messages[{i + len(messages) - len(turns)}]"
            if message["role"] == "tool":
                pieces += _tool_result(turns, i)
            elif message["role"] == "assistant":
                pieces += _role("assistant") + self._assistant(message, where)
            elif message["role"] == "system":
                raise ValueError(
                    f"{where}.role is 'system'; the default template has one system turn, the first: put the text "
                    "there, or use a model folder whose own template has later ones"
                )
            else:
                pieces += _turn(message["role"], [Piece(message["content"])])
        return pieces + (_role("assistant") if prompt else [])

    def samples(self, messages: Sequence[dict], *, tools: Sequence[dict] = ()) -> list[list[Piece]]:
        """The pieces of the samples of a conversation: one sample, because later turns do not change earlier ones."""
        return [self.render(messages, tools=tools)]

    def renderings(
        self, messages: Sequence[dict], parts: Sequence[tuple[int, bool]], *, tools: Sequence[dict] = ()
    ) -> list[list[Piece]]:
        """`render` of the first n messages, for each (n, prompt) of `parts`."""
        return [self.render(messages[:n], tools=tools, prompt=prompt) for n, prompt in parts]

    def _system(self, text: str, tools: Sequence[dict]) -> str:
        parts = [text] if text else []
        if tools:
            schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            parts.append(
                TOOLS_BLOCK.rstrip().replace("{schemas}", schemas).replace("{format}", CALL_FORMATS[self.tool_format])
            )
        if not SWITCH.search(text):
            parts.append(f"detailed thinking {'on' if self.thinking else 'off'}")
            parts += [f"thinking effort: {self.effort}"] if self.effort else []
        return "\n".join(parts)

    def _assistant(self, message: dict, where: str) -> list[Piece]:
        reasoning, content = message.get("reasoning"), message["content"]
        pieces = []
        if reasoning is not None:
            pieces = [Piece(THINK, True, True), Piece(reasoning, False, True), Piece(END_THINK, True, True)]
        for i, call in enumerate(message.get("tool_calls") or ()):
            try:
                content += ("\n" if content else "") + render_call(call, self.tool_format)
            except ValueError as error:
                raise ValueError(f"{where}.tool_calls[{i}]: {error}") from None
        return [*pieces, Piece(content, False, True), Piece(END, True, True)]


def _role(role: str) -> list[Piece]:
    return [Piece("<role>", True), Piece(NAMES[role]), Piece("</role>", True)]


def _turn(role: str, body: list[Piece]) -> list[Piece]:
    return [*_role(role), *body, Piece(END, True)]


def _tool_result(turns: Sequence[dict], i: int) -> list[Piece]:
    """The pieces of a tool result. Consecutive results share a turn, which the first opens and the last closes."""
    opens = i == 0 or turns[i - 1]["role"] != "tool"
    closes = i + 1 == len(turns) or turns[i + 1]["role"] != "tool"
    body = Piece(f"\n<tool_response>\n{turns[i]['content']}\n</tool_response>")
    return (_role("tool") if opens else []) + [body] + ([Piece(END, True)] if closes else [])


def opens_reasoning(prompt: Sequence[Piece]) -> bool:
    """Whether a prompt ends with <think>, as those of some templates do, so that the answer begins with reasoning."""
    return "".join(piece.text for piece in prompt).rstrip().endswith(THINK)


def opened_reasoning(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """<think> where a prompt of tokens ends with it, else ""; the prefix of an answer that is to be parsed."""
    ending = tokenizer.decode(list(prompt[-16:]), skip_special_tokens=False)  # <think> may be several tokens
    return THINK if ending.rstrip().endswith(THINK) else ""


def encode(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> tuple[list[int], list[int]]:
    """(token ids, loss mask); the mask is 1 on the assistant's words and ends of turn.

    A special piece is its token if the tokenizer has it; other pieces are encoded as plain text.
    """
    return next(encode_all(tokenizer, [pieces]))


def encode_all(tokenizer: Tokenizer, conversations: Sequence[Sequence[Piece]]) -> Iterator[tuple[list[int], list[int]]]:
    """`encode` of each conversation, on all threads."""
    pieces = (piece for conversation in conversations for piece in conversation)
    encoded = encode_documents(tokenizer, (piece.text for piece in pieces if _token(tokenizer, piece) is None))
    for conversation in conversations:
        ids, mask = [], []
        for piece in conversation:
            token = _token(tokenizer, piece)
            new = [token] if token is not None else next(encoded).tolist()
            ids += new
            mask += [int(piece.trained)] * len(new)
        yield ids, mask


def _token(tokenizer: Tokenizer, piece: Piece) -> int | None:
    return tokenizer.token_to_id(piece.text) if piece.special else None


def check_messages(messages: Any, where: str = "messages") -> None:
    """Raises ValueError naming the message, the field, what was found and what was expected."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"{where} is {messages!r}; expected a list of messages, at least one")
    for i, message in enumerate(messages):
        _check_message(message, f"{where}[{i}]")


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise ValueError(f"{where} is a {type(message).__name__}; expected a dict with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"{where}.role is {role!r}{nearest(str(role), ROLES)}; expected one of {', '.join(ROLES)}")
    known = ("role", "content", "reasoning", "tool_calls") if role == "assistant" else ("role", "content")
    for key in message:
        if key not in known:
            raise ValueError(
                f"{where}.{key} is unknown{nearest(key, known)}; a message of {role!r} has {', '.join(known)}"
            )
    for key in ("content", "reasoning"):
        value = message.get(key)
        if not isinstance(value, str) and (key == "content" or value is not None):
            raise ValueError(f"{where}.{key} is {value!r}; expected text")
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple | None):
        raise ValueError(f"{where}.tool_calls is {calls!r}; expected a list")
    for i, call in enumerate(calls or ()):
        good = isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
        if not good:
            raise ValueError(f"{where}.tool_calls[{i}] is {call!r}; expected {{'name': text, 'arguments': dict}}")
