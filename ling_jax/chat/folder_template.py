"""The chat template that comes with a checkpoint folder, which wins over the default one."""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import jinja2
from etils import epath
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ling_jax.chat.template import Piece, check_messages
from ling_jax.data.tokenizer import SPECIAL_TOKENS
from ling_jax.files import replacing

FILE_NAME = "chat_template.jinja"
CONFIG_NAME = "tokenizer_config.json"
END_TOKENS = ("bos_token", "eos_token")
PRIVATE = "".join(map(chr, range(0xE000, 0xF900)))  # characters that mean nothing


@dataclasses.dataclass(frozen=True)
class FolderTemplate:
    """A Jinja template, rendered in Jinja's sandbox with what `transformers` gives to a template.

    What it writes for an assistant is found by rendering the conversation up to there and one message further; a
    template that rewrites what came before has no such part. This is an error, but in a prompt, of which nothing is
    learnt.
    """

    source: str
    where: str = dataclasses.field(repr=False, compare=False)  # for messages; a copy elsewhere is the same template
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    bos_token: str = ""
    eos_token: str = ""
    thinking: bool = False

    def render(self, messages: Sequence[dict], *, tools: Sequence[dict] = (), prompt: bool = False) -> list[Piece]:
        """Pieces of a conversation, as `ChatTemplate.render`."""
        check_messages(messages)
        mark = _unused([messages, list(tools), self.source])
        marked = self._marked([_fields(messages), list(tools)], mark)
        try:
            pieces = self._pieces(*marked, prompt=prompt)
        except ValueError:
            if not prompt:
                raise
            pieces = self._split(self._text(*marked, prompt=True), trained=False)  # nothing of a prompt is learnt
        return [piece._replace(text=_without(mark, piece.text)) for piece in pieces]

    def _pieces(self, messages: Sequence[dict], tools: Sequence[dict], *, prompt: bool) -> list[Piece]:
        pieces, before = [], ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            opened = self._text(messages[:i], tools, prompt=True)
            closed = self._text(messages[: i + 1], tools, prompt=False)
            if not (opened.startswith(before) and closed.startswith(opened)):
                raise ValueError(f"the chat template of {self.where} rewrites history at message {i}")
            pieces += self._split(opened[len(before) :], trained=False) + self._split(
                closed[len(opened) :], trained=True
            )
            before = closed
        whole = self._text(messages, tools, prompt=prompt)
        if not whole.startswith(before):
            raise ValueError(f"the chat template of {self.where} rewrites history after the last answer")
        return pieces + self._split(whole[len(before) :], trained=False)

    def _text(self, messages: Sequence[dict], tools: Sequence[dict], *, prompt: bool) -> str:
        values = dict(tools=tools or None, add_generation_prompt=prompt, enable_thinking=self.thinking)
        values |= {name: token for name in END_TOKENS if (token := getattr(self, name))}
        try:
            return _compiled(self.source).render(messages=messages, **values)
        except Exception as error:  # a template may run anything that the sandbox allows
            raise ValueError(f"the chat template of {self.where} fails: {type(error).__name__}: {error}") from None

    def _marked(self, value, mark: str):
        """The value with the mark in every special token that a text spells, so that it stays text."""
        match value:
            case str():
                return self._special.sub(lambda token: token[0][0] + mark + token[0][1:], value)
            case dict():
                return {self._marked(key, mark): self._marked(item, mark) for key, item in value.items()}
            case list() | tuple():
                return [self._marked(item, mark) for item in value]
        return value

    def _split(self, text: str, *, trained: bool) -> list[Piece]:
        parts = self._special.split(text)
        return [Piece(part, special=part in self.special_tokens, trained=trained) for part in parts if part]

    @property
    def _special(self) -> re.Pattern:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def _fields(messages: Sequence[dict]) -> list[dict]:
    """The messages under the names that templates know, without what is null."""
    named = [message | {"reasoning_content": message.get("reasoning")} for message in messages]
    return [{key: value for key, value in message.items() if value is not None} for message in named]


def _unused(values) -> str:
    """A character that occurs nowhere in the values, neither as it is nor as JSON escapes it."""
    told = json.dumps(values, default=str)
    return next(mark for mark in PRIVATE if json.dumps(mark)[1:-1] not in told)


def _without(mark: str, text: str) -> str:
    return text.replace(mark, "").replace(json.dumps(mark)[1:-1], "")


@functools.cache
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(source)


class _Generation(Extension):
    """{% generation %} blocks, which mark what an assistant says: they write what is in them."""

    tags = frozenset({"generation"})

    def parse(self, parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(value, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    """Jinja's own escapes what HTML reads, such as "<"."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str):
    raise jinja2.TemplateError(message)


def save_template(template: FolderTemplate, folder: epath.PathLike) -> None:
    """Writes what `load_template` reads into the folder, each file whole or not at all."""
    tokens = {name: token for name in END_TOKENS if (token := getattr(template, name))}
    files = {FILE_NAME: template.source} | ({CONFIG_NAME: json.dumps(tokens)} if tokens else {})
    for name, text in files.items():
        with replacing(epath.Path(folder) / name) as file:
            file.write(text.encode())


def load_template(folder: str | Path, special_tokens: Sequence[str] = ()) -> FolderTemplate | None:
    """The template of chat_template.jinja, or of tokenizer_config.json's `chat_template`; None where there is none.

    `special_tokens` are the tokenizer's, beside those of Ling and Ring. Raises ValueError naming a file that cannot be
    read.
    """
    path, config_path = Path(folder) / FILE_NAME, Path(folder) / CONFIG_NAME
    config = _read_config(config_path) if config_path.is_file() else {}
    if path.is_file():
        source, where = path.read_text(encoding="utf-8"), path
    else:
        source, where = _source(config.get("chat_template"), config_path), config_path
    if not source:
        return None
    tokens = {name: _token_text(config.get(name)) for name in END_TOKENS}
    return FolderTemplate(source, str(where), tuple(dict.fromkeys((*SPECIAL_TOKENS, *special_tokens))), **tokens)


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is a JSON {type(config).__name__}; expected an object")
    return config


def _source(value, path: Path) -> str | None:
    """A template, or the default one of [{"name", "template"}]."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = next((entry.get("template", entry) for entry in value if entry.get("name") == "default"), None)
    if not isinstance(value, str | None):
        raise ValueError(f"{path}: chat_template is {value!r}; expected text, or a list of objects name and template")
    return value


def _token_text(value) -> str:
    """A token is a string, an object with its content, or none."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
