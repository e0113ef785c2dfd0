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
MARK = "\ue000"  # of the private use area; put into what only spells a special token


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
        values = dict(tools=list(tools) or None, add_generation_prompt=prompt, enable_thinking=self.thinking)
        plain = [{key: self._marked(value) for key, value in message.items()} for message in messages]
        try:
            return _compiled(self.source).render(messages=plain, **values)
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"the chat template of {self.where} fails: {type(error).__name__}: {error}") from None

    def _marked(self, value):
        """The value with every special token that a text spells broken up, so that it stays text."""
        if not isinstance(value, str):
            return value
        for token in self.special_tokens:
            value = value.replace(token, token[0] + MARK + token[1:])
        return value

    def _split(self, text: str, *, trained: bool) -> list[Piece]:
        parts = re.split("(" + "|".join(map(re.escape, self.special_tokens)) + ")", text)
        return [
            Piece(part.replace(MARK, ""), special=part in self.special_tokens, trained=trained)
            for part in parts
            if part
        ]


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
