"""The chat template of a checkpoint folder, which is used instead of the default one."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from ling_jax import files
from ling_jax.chat.default_source import default_source
from ling_jax.chat.renderer import RENDERER, Rendered
from ling_jax.chat.template import END, Piece, check_messages
from ling_jax.chat.tool_calls import END_THINK, THINK
from ling_jax.data.tokenizer import EOS, SPECIAL_TOKENS
from ling_jax.messages import shown
from ling_jax.paths import as_path

FILE_NAME = "chat_template.jinja"
TOOLS_NAME = "additional_chat_templates/tool_use.jinja"  # where transformers puts it
CONFIG_NAME = "tokenizer_config.json"
NAMED_TOKENS = ("bos_token", "eos_token")
# Characters that mean nothing: the private areas of Unicode.
PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
ESCAPE = re.compile(r"\\u([0-9a-f]{4})")  # of JSON; a character above U+FFFF has two
THINKING_NAMES = ("enable_thinking", "thinking")  # what templates read; the second is DeepSeek's
READS_REASONING = re.compile(r"""reasoning_content|\.reasoning\b|['"]reasoning['"]""")
EFFORT_NAMES = ("reasoning_effort", "thinking_effort")  # gpt-oss's, which others took over, and Ling's own words


@dataclasses.dataclass(frozen=True)
class FolderTemplate:
    """A Jinja template, rendered in Jinja's sandbox with what `transformers` gives to a template.

    The sandbox is a process with limits of time, memory and output (`ling_jax.chat.renderer`).

    The assistant's text is the difference between two renderings of the conversation, up to its message and one message
    further. Where a later rendering does not start with an earlier one, for example because it drops the reasoning of
    earlier turns, the conversation becomes several samples. Text after the end token of a turn belongs to the next
    message.
    """

    source: str
    where: str = dataclasses.field(repr=False, compare=False)  # file, for messages; a copy is the same template
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    end_tokens: tuple[str, ...] = (EOS, END)  # tokens that end a turn
    bos_token: str = ""
    eos_token: str = ""
    tools_source: str = ""  # the template of conversations with tools, if it is another one
    thinking: bool | None = None  # None: the template's default, with its switch undefined
    effort: str | None = None  # as `thinking`

    def render(self, messages: Sequence[dict], *, tools: Sequence[dict] = (), prompt: bool = False) -> list[Piece]:
        """The pieces of a conversation, as in `ChatTemplate.render`.

        Raises ValueError where the template rewrites history, except in a prompt, which is not trained on.
        """
        try:
            first, *others = self._samples(messages, tools, prompt)
            if not others:
                return first
            problem = ValueError(f"the chat template of {self.where} rewrites history; `samples` gives all of it")
        except ValueError as error:
            problem = error
        if not prompt:
            raise problem
        return self.renderings(messages, [(len(messages), True)], tools=tools)[0]

    def samples(self, messages: Sequence[dict], *, tools: Sequence[dict] = ()) -> list[list[Piece]]:
        """The pieces of the samples of a conversation; each answer is trained on in one of them.

        Raises ValueError where the template does not write an answer after its own prompt, or omits its calls.
        """
        calling = [i for i, message in enumerate(messages) if message.get("tool_calls")]
        if calling and "tool_calls" not in self._source(tools):
            problem = f"reads no tool_calls: those of messages[{calling[0]}] would be lost"
            raise ValueError(f"the chat template of {self.where} {problem}")
        found = self._samples(messages, tools, False)
        return [pieces for pieces in found if any(piece.trained for piece in pieces)] or found[:1]

    def reads(self, names: Sequence[str]) -> bool:
        """Whether one of its sources contains one of the names."""
        return any(name in source for source in (self.source, self.tools_source) for name in names)

    def renderings(
        self, messages: Sequence[dict], parts: Sequence[tuple[int, bool]], *, tools: Sequence[dict] = ()
    ) -> list[list[Piece]]:
        """The pieces of the first n messages for each part (n, whether with the generation prompt), untrained."""
        check_messages(messages)
        mark, text, found = self._mark(messages, tools), "", []
        for kept, added in self._texts(messages, tools, parts, mark):
            text = text[:kept] + added
            found.append(self._split(text, mark))
        return found

    def _samples(self, messages: Sequence[dict], tools: Sequence[dict], prompt: bool) -> list[list[Piece]]:
        """The samples, from the texts up to an answer, the answer, up to the next one, ….

        A text that does not start with the one before begins a sample.
        """
        check_messages(messages)
        said = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        steps = [(n, n == i) for i in said for n in (i, i + 1)] + [(len(messages), prompt)]
        mark = self._mark(messages, tools)
        found, length, behind = [[]], 0, ""
        for number, (kept, added) in enumerate(self._texts(messages, tools, steps, mark)):
            answer = number % 2 == 1
            if kept < length and answer:
                problem = f"it does not write messages[{said[number // 2]}] behind its own prompt"
                raise ValueError(f"the chat template of {self.where} rewrites history: {problem}")
            if kept < length:
                found, behind = [*found, []], ""
            length, text, behind = kept + len(added), behind + added, ""
            if answer and (end := self._ends.search(text)):  # the first one, where a model stops
                text, behind = text[: end.end()], text[end.end() :]
            found[-1] += self._split(text, mark, trained=answer)
        return found

    def _texts(self, messages: Sequence[dict], tools: Sequence[dict], parts, mark: str) -> list[Rendered]:
        """The template's output for each part, with the mark inside of special tokens that messages spell."""
        values, source = {name: token for name in NAMED_TOKENS if (token := getattr(self, name))}, self._source(tools)
        try:
            messages, tools = _marked([list(messages), list(tools)], self._special, mark)
        except RecursionError:
            raise ValueError("messages or tools are nested too deeply for a chat template") from None
        messages = _fields(messages, reasoning_apart=READS_REASONING.search(source) is not None)
        values |= {"tools": tools or None, "documents": None}
        values |= dict.fromkeys(THINKING_NAMES, self.thinking) if self.thinking is not None else {}
        values |= dict.fromkeys(EFFORT_NAMES, self.effort) if self.effort is not None else {}
        try:
            return RENDERER.texts(source, messages, values, parts)
        except ValueError as error:
            raise ValueError(f"the chat template of {self.where} {error}") from None

    def _mark(self, messages: Sequence[dict], tools: Sequence[dict]) -> str:
        """A character that occurs neither in the conversation nor in the template, also not as a JSON escape."""
        try:
            text = json.dumps([list(messages), list(tools), self.source, self.tools_source], default=str)
        except RecursionError:
            raise ValueError("messages or tools are nested too deeply for a chat template") from None
        used = set(ESCAPE.findall(text))
        for mark in map(chr, itertools.chain(*PRIVATE)):
            if not used.issuperset(ESCAPE.findall(json.dumps(mark))):
                return mark
        raise ValueError(
            f"a conversation and the chat template of {self.where} hold every private character of Unicode"
        )

    def _split(self, text: str, mark: str, *, trained: bool = False) -> list[Piece]:
        special_tokens, escaped = frozenset(self.special_tokens), json.dumps(mark)[1:-1]
        parts = [(part, part in special_tokens) for part in self._special.split(text) if part]
        plain = [(part.replace(mark, "").replace(escaped, ""), special) for part, special in parts]
        return [Piece(part, special=special, trained=trained) for part, special in plain]

    def _source(self, tools: Sequence[dict]) -> str:
        return self.tools_source if tools and self.tools_source else self.source

    @property
    def _special(self) -> re.Pattern:
        return _any_of(self.special_tokens)

    @property
    def _ends(self) -> re.Pattern:
        return _any_of(self.end_tokens)


@functools.lru_cache(maxsize=16)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def _fields(messages: Sequence[dict], *, reasoning_apart: bool) -> list[dict]:
    """The messages with the field names that templates use, without null fields.

    Reasoning is a field where the template reads one, else <think>…</think> before the content. A call has OpenAI's
    form, {"type", "function": {"name", "arguments"}}, and the two fields of `function` beside it.
    """
    found = []
    for message in messages:
        reasoning = message.get("reasoning")
        if reasoning_apart or reasoning is None:
            message = message | {"reasoning_content": reasoning}
        else:
            message = message | {"reasoning": None, "content": THINK + reasoning + END_THINK + message["content"]}
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{"type": "function", "function": call} | call for call in calls]
        found.append({key: value for key, value in message.items() if value is not None})
    return found


def _marked(value, special: re.Pattern, mark: str):
    """The value with the mark inside of special tokens in its texts, so that they stay text."""
    match value:
        case str():
            return special.sub(lambda token: token[0][0] + mark + token[0][1:], value)
        case dict():
            return {_marked(key, special, mark): _marked(item, special, mark) for key, item in value.items()}
        case list() | tuple():
            return [_marked(item, special, mark) for item in value]
    return value


def load_template(
    folder: str | Path, special_tokens: Sequence[str] = (), end_tokens: Sequence[str] = ()
) -> FolderTemplate | None:
    """The template of chat_template.jinja, or of `chat_template` in tokenizer_config.json; None without one.

    A template named tool_use, in a list there or in additional_chat_templates/, is for conversations with tools. It is
    None for the default template too, which exports have, because `ChatTemplate` has more options.

    `special_tokens` and `end_tokens` are the tokenizer's, beside those of Ling and Ring. Raises ValueError naming a
    file that cannot be read.
    """
    folder = as_path(folder)
    path, config_path = folder / FILE_NAME, folder / CONFIG_NAME
    config = read_object(config_path)
    sources, where = _sources(config.get("chat_template"), config_path), config_path
    if path.is_file():
        sources, where = {"default": _text(path)}, path
    if (tools_path := folder / TOOLS_NAME).is_file():
        sources["tool_use"] = _text(tools_path)
    if not sources or sources == {"default": default_source()}:
        return None
    if not sources.get("default"):
        raise ValueError(f"{where} has no default chat template, only {', '.join(sources)}; name one 'default'")
    tokens = {name: token_text(config.get(name)) for name in NAMED_TOKENS}
    ends = tuple(dict.fromkeys((EOS, END, *end_tokens, *filter(None, [tokens["eos_token"]]))))
    special = tuple(dict.fromkeys((*SPECIAL_TOKENS, *special_tokens, *ends)))
    return FolderTemplate(
        sources["default"], str(where), special, ends, **tokens, tools_source=sources.get("tool_use", "")
    )


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if not text.strip():
        raise ValueError(f"{path} is empty; expected a chat template, or no such file")
    return text


def read_object(path: epath.PathLike) -> dict:
    """The object of a JSON file; {} without the file. Raises ValueError on other content."""
    path = as_path(path)
    return files.read_object(path) if path.is_file() else {}


def _sources(value, path: Path) -> dict[str, str]:
    """{name: template} of a text, which is the default template, or of a list of {"name", "template"}."""
    entries = value if isinstance(value, list) else [{"name": "default", "template": value}] if value else []
    for entry in entries:
        fields = [entry.get("name"), entry.get("template")] if isinstance(entry, dict) else [None]
        if not all(isinstance(field, str) for field in fields):
            expected = "expected text, or a list of objects name and template"
            raise ValueError(f"{path}: chat_template is {shown(value)}; {expected}")
    return {entry["name"]: entry["template"] for entry in entries}


def token_text(value: Any) -> str:
    """The text of a token in a config: a string, or an object with `content`; "" for other values."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
