"""The chat template that comes with a checkpoint folder, which wins over the default one."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from ling_jax import files
from ling_jax.chat.default_source import default_source
from ling_jax.chat.renderer import RENDERER, Rendered
from ling_jax.chat.template import END, Piece, check_messages
from ling_jax.data.tokenizer import EOS, SPECIAL_TOKENS

FILE_NAME = "chat_template.jinja"
CONFIG_NAME = "tokenizer_config.json"
NAMED_TOKENS = ("bos_token", "eos_token")
# Characters that mean nothing: the private areas of Unicode.
PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
ESCAPE = re.compile(r"\\u([0-9a-f]{4})")  # of JSON; a character above U+FFFF has two
THINKING_NAMES = ("enable_thinking", "thinking")  # what templates read; the second is DeepSeek's
EFFORT_NAMES = ("reasoning_effort", "thinking_effort")  # gpt-oss's, which others took over, and Ling's own words


@dataclasses.dataclass(frozen=True)
class FolderTemplate:
    """A Jinja template, rendered in Jinja's sandbox with what `transformers` gives to a template.

    The sandbox is a process with limits of time, memory and output (`ling_jax.chat.renderer`).

    What it writes for an assistant is found by rendering the conversation up to there and one message further; a
    template that rewrites what came before has no such part. This is an error, but in a prompt, of which nothing is
    learnt. What stands behind the end token of a turn belongs to what follows.
    """

    source: str
    where: str = dataclasses.field(repr=False, compare=False)  # for messages; a copy elsewhere is the same template
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    end_tokens: tuple[str, ...] = (EOS, END)  # those that end a turn
    bos_token: str = ""
    eos_token: str = ""
    thinking: bool | None = None  # None: the template's own default, its switch is undefined
    effort: str | None = None  # as `thinking`

    def render(self, messages: Sequence[dict], *, tools: Sequence[dict] = (), prompt: bool = False) -> list[Piece]:
        """Pieces of a conversation, as `ChatTemplate.render`."""
        check_messages(messages)
        said = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        steps = [(n, n == i) for i in said for n in (i, i + 1)] + [(len(messages), prompt)]
        mark = self._mark(messages, tools)
        try:
            return self._grown(self._texts(messages, tools, steps, mark), said, mark)
        except ValueError:
            if not prompt:
                raise
        (whole,) = self._texts(messages, tools, steps[-1:], mark)  # nothing of a prompt is learnt
        return self._split(whole.added, mark)

    def renderings(
        self, messages: Sequence[dict], parts: Sequence[tuple[int, bool]], *, tools: Sequence[dict] = ()
    ) -> list[list[Piece]]:
        """Pieces of the first n messages, for each (n, whether with the generation prompt); nothing is trained."""
        check_messages(messages)
        mark, text, found = self._mark(messages, tools), "", []
        for kept, added in self._texts(messages, tools, parts, mark):
            text = text[:kept] + added
            found.append(self._split(text, mark))
        return found

    def _grown(self, texts: Sequence[Rendered], said: Sequence[int], mark: str) -> list[Piece]:
        """Pieces of texts that each go on from the one before: up to an answer, the answer, up to the next, …"""
        pieces, length, behind = [], 0, ""
        for number, (kept, added) in enumerate(texts):
            if kept < length:
                at = f"at message {said[number // 2]}" if number // 2 < len(said) else "after the last answer"
                raise ValueError(f"the chat template of {self.where} rewrites history {at}")
            length, answer = kept + len(added), number % 2 == 1
            text, behind = behind + added, ""
            if answer and (ends := [match.end() for match in self._ends.finditer(text)]):
                text, behind = text[: ends[-1]], text[ends[-1] :]
            pieces += self._split(text, mark, trained=answer)
        return pieces

    def _texts(self, messages: Sequence[dict], tools: Sequence[dict], parts, mark: str) -> list[Rendered]:
        """What the template writes, with the mark in every special token that a text spells."""
        values = {name: token for name in NAMED_TOKENS if (token := getattr(self, name))}
        try:
            messages, tools = _marked([_fields(messages), list(tools)], self._special, mark)
        except RecursionError:
            raise ValueError("messages or tools are nested too deeply for a chat template") from None
        values |= {"tools": tools or None, "documents": None}
        values |= dict.fromkeys(THINKING_NAMES, self.thinking) if self.thinking is not None else {}
        values |= dict.fromkeys(EFFORT_NAMES, self.effort) if self.effort is not None else {}
        try:
            return RENDERER.texts(self.source, messages, values, parts)
        except ValueError as error:
            raise ValueError(f"the chat template of {self.where} {error}") from None

    def _mark(self, messages: Sequence[dict], tools: Sequence[dict]) -> str:
        """A character that occurs nowhere, neither as it is nor as JSON escapes it."""
        try:
            told = json.dumps([list(messages), list(tools), self.source], default=str)
        except RecursionError:
            raise ValueError("messages or tools are nested too deeply for a chat template") from None
        used = set(ESCAPE.findall(told))
        for mark in map(chr, itertools.chain(*PRIVATE)):
            if not used.issuperset(ESCAPE.findall(json.dumps(mark))):
                return mark
        raise ValueError(
            f"a conversation and the chat template of {self.where} hold every private character of Unicode"
        )

    def _split(self, text: str, mark: str, *, trained: bool = False) -> list[Piece]:
        special_tokens = frozenset(self.special_tokens)
        parts = [(part, part in special_tokens) for part in self._special.split(text) if part]
        return [Piece(_without(mark, part), special=special, trained=trained) for part, special in parts]

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


def _fields(messages: Sequence[dict]) -> list[dict]:
    """The messages under the names that templates know, without what is null.

    A call has OpenAI's form, {"type", "function": {"name", "arguments"}}, and the two fields of `function` beside it.
    """
    found = []
    for message in messages:
        message = message | {"reasoning_content": message.get("reasoning")}
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{"type": "function", "function": call} | call for call in calls]
        found.append({key: value for key, value in message.items() if value is not None})
    return found


def _marked(value, special: re.Pattern, mark: str):
    """The value with the mark in every special token that a text spells, so that it stays text."""
    match value:
        case str():
            return special.sub(lambda token: token[0][0] + mark + token[0][1:], value)
        case dict():
            return {_marked(key, special, mark): _marked(item, special, mark) for key, item in value.items()}
        case list() | tuple():
            return [_marked(item, special, mark) for item in value]
    return value


def _without(mark: str, text: str) -> str:
    return text.replace(mark, "").replace(json.dumps(mark)[1:-1], "")


def load_template(
    folder: str | Path, special_tokens: Sequence[str] = (), end_tokens: Sequence[str] = ()
) -> FolderTemplate | None:
    """The template of chat_template.jinja, or of tokenizer_config.json's `chat_template`; None where there is none.

    It is None for the default template too, which exports carry: `ChatTemplate` has more options.

    `special_tokens` and `end_tokens` are the tokenizer's, beside those of Ling and Ring. Raises ValueError naming a
    file that cannot be read.
    """
    path, config_path = Path(folder) / FILE_NAME, Path(folder) / CONFIG_NAME
    config = read_object(config_path)
    if path.is_file():
        source, where = _text(path), path
    else:
        source, where = _source(config.get("chat_template"), config_path), config_path
    if not source or source == default_source():
        return None
    tokens = {name: token_text(config.get(name)) for name in NAMED_TOKENS}
    ends = tuple(dict.fromkeys((EOS, END, *end_tokens, *filter(None, [tokens["eos_token"]]))))
    special = tuple(dict.fromkeys((*SPECIAL_TOKENS, *special_tokens, *ends)))
    return FolderTemplate(source, str(where), special, ends, **tokens)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def read_object(path: epath.PathLike) -> dict:
    """The object of a JSON file, {} where there is none; raises ValueError on anything else."""
    path = epath.Path(path)
    return files.read_object(path) if path.is_file() else {}


def _source(value, path: Path) -> str | None:
    """A template, or the default one of [{"name", "template"}]."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = next((entry.get("template", entry) for entry in value if entry.get("name") == "default"), None)
    if not isinstance(value, str | None):
        raise ValueError(f"{path}: chat_template is {value!r}; expected text, or a list of objects name and template")
    return value


def token_text(value) -> str:
    """A token is a string, an object with its content, or none."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
