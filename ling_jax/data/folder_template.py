"""The chat template that comes with a checkpoint folder, which wins over the default one."""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from etils import epath
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ling_jax.data.chat import Piece, check_messages
from ling_jax.data.tokenizer import SPECIAL_TOKENS
from ling_jax.files import replacing

FILE_NAME = "chat_template.jinja"
PRIVATE = "".join(map(chr, range(0xE000, 0xF900)))  # characters that mean nothing


@dataclasses.dataclass(frozen=True)
class FolderTemplate:
    """A Jinja template, rendered in Jinja's sandbox.

    What it writes for an assistant is found by rendering the conversation up to there and one message further; a
    template that rewrites what came before has no such part, which is an error.
    """

    source: str
    where: str
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    thinking: bool = False

    def render(self, messages: Sequence[dict], *, tools: Sequence[dict] = (), prompt: bool = False) -> list[Piece]:
        """Pieces of a conversation, as `ChatTemplate.render`."""
        check_messages(messages)
        mark = _unused([messages, list(tools), self.source])
        pieces = self._pieces(*self._marked([messages, list(tools)], mark), prompt=prompt)
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
        try:
            return _compiled(self.source).render(messages=messages, **values)
        except (jinja2.TemplateError, TypeError, KeyError) as error:
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


def _unused(values) -> str:
    """A character that occurs nowhere in the values, neither as it is nor as JSON escapes it."""
    told = json.dumps(values, default=str)
    return next(mark for mark in PRIVATE if json.dumps(mark)[1:-1] not in told)


def _without(mark: str, text: str) -> str:
    return text.replace(mark, "").replace(json.dumps(mark)[1:-1], "")


@functools.cache
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def _refuse(message: str):
    raise jinja2.TemplateError(message)


def save_template(template: FolderTemplate, folder: epath.PathLike) -> None:
    """Writes `folder`/chat_template.jinja, whole or not at all."""
    with replacing(epath.Path(folder) / FILE_NAME) as file:
        file.write(template.source.encode())


def load_template(folder: str | Path) -> FolderTemplate | None:
    """The template of chat_template.jinja, or of tokenizer_config.json's `chat_template`; None where there is none."""
    path, config = Path(folder) / FILE_NAME, Path(folder) / "tokenizer_config.json"
    if path.is_file():
        return FolderTemplate(path.read_text(encoding="utf-8"), str(path))
    source = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(source, list):  # several by name
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    return FolderTemplate(source, str(config)) if source else None
