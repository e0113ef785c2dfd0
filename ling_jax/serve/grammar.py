"""Answers that follow a grammar: JSON schemas and forced calls, as masks of the tokens that may come next.

The library is llguidance; the engine asks for a mask before each token (`Request.allowed`).
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from tokenizers import Tokenizer

from ling_jax.chat.tool_calls import CALL, END_CALL, END_THINK, THINK
from ling_jax.messages import one_line

# Blanks between the parts of JSON: a line break and its indent, but no endless run of them; our choice.
BLANKS = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]{0,16}"}
NEWLINE = "\n"
MORE_CALLS = '("\\n" call)*'
Allowed = Callable[[Sequence[int]], np.ndarray]


class Grammars:
    """Compiles grammars over the tokens of a model with `vocab_size` logits; all of `end_ids` end an answer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._tokens = LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=sorted(end_ids))

    def json_answer(self, schema: Mapping[str, Any], reasoning: str) -> Callable[[], Allowed]:
        """Makes masks, for one answer each, that leave JSON of the schema.

        `reasoning` says what may come before: "" nothing, "begun" the rest of a reasoning that the prompt opened,
        "maybe" a reasoning or nothing. Raises ValueError where the library cannot follow the schema.
        """
        return self._compile(f"start: {self._before(reasoning)} answer\nanswer: {_json(schema)}\n")

    def tool_calls(
        self, tools: Mapping[str, Mapping[str, Any]], reasoning: str, *, many: bool
    ) -> Callable[[], Allowed]:
        """The same for calls, one or `many`, of `tools` {name: JSON schema of its arguments}."""
        any_tool = " | ".join(f"tool_{i}" for i in range(len(tools)))
        lines = [
            f"start: {self._before(reasoning)} call {MORE_CALLS if many else ''}",
            f"call: {self._mark(CALL)} {_text(NEWLINE)} ({any_tool}) {_text(NEWLINE)} {self._mark(END_CALL)}",
        ]
        for i, (name, parameters) in enumerate(tools.items()):
            head = f'{{"name": {json.dumps(name)}, "arguments": '
            lines.append(f'tool_{i}: {_text(head)} arguments_{i} "}}"')
            lines.append(f"arguments_{i}: {_json({'type': 'object'} | dict(parameters))}")
        return self._compile("\n".join(lines) + "\n")

    def _before(self, reasoning: str) -> str:
        """The part of a grammar before the answer."""
        if not reasoning:
            return ""
        rest = f"/(?s:.*)/ {end}" if (end := self._special(END_THINK)) else r"/(?s:.*?)<\/think>/"
        whole = f"({self._mark(THINK)} {rest})?"
        return f"{rest if reasoning == 'begun' else whole} /[ \\n]{{0,4}}/"

    def _mark(self, token: str) -> str:
        return self._special(token) or _text(token)

    def _special(self, token: str) -> str:
        """A token by its number, where the library takes it for one that no text spells; else ""."""
        number = self._tokenizer.token_to_id(token)
        return f"<[{number}]>" if number is not None and self._tokens.is_special_token(number) else ""

    def _compile(self, lark: str) -> Callable[[], Allowed]:
        matcher = LLMatcher(self._tokens, LLMatcher.grammar_from_lark(lark), log_level=0)
        matcher.compute_bitmask()  # some grammars are found to be too large by their first mask
        if error := matcher.get_error():  # "at 2(9): failed to compile JSON schema: …", and an extract of the grammar
            first = error.splitlines()[0]
            raise ValueError(one_line(first.partition("JSON schema: ")[2] or first))
        return lambda: _Mask(matcher.deep_copy(), self._vocab_size)


class _Mask:
    """The allowed next tokens of one answer."""

    def __init__(self, matcher: LLMatcher, vocab_size: int):
        self._matcher, self._read = matcher, 0
        self._words = allocate_token_bitmask(1, vocab_size)

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        """[ceil(W / 32)] int32 words after these tokens of the answer; each call has more of them than the last."""
        self._matcher.consume_tokens(list(tokens[self._read :]))
        self._read = len(tokens)
        fill_next_token_bitmask(self._matcher, self._words)
        if error := self._matcher.get_error():
            raise ValueError(one_line(error.splitlines()[0]))
        return self._words[0]


def _json(schema: Mapping[str, Any]) -> str:
    """The schema inside of a grammar. Raises ValueError on other content of `x-guidance`."""
    if "x-guidance" in schema:
        raise ValueError("x-guidance is an option of the library; leave it out")
    return "%json " + json.dumps({**schema, "x-guidance": BLANKS})


def _text(text: str) -> str:
    return json.dumps(text)
