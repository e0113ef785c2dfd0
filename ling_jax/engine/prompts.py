"""Records with a prompt to tokens."""

from collections.abc import Iterable
from typing import Any

from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import Piece, encode_all
from ling_jax.chat.thinking import with_reasoning
from ling_jax.checkpoint.folder import Loaded

Record = dict[str, Any]


def encode_prompts(model: Loaded, records: Iterable[tuple[str, Record]], *, raw: bool = False) -> list[list[int]]:
    """Tokens of the prompt of each (where it stands, record): `messages` by the chat template.

    So is `prompt`, as one message of a user, where the model is tuned for conversations; else, or `raw`, it is plain
    text. Raises ValueError that says where a template refuses its messages.
    """
    in_turns = model.is_chat and not raw
    return [ids for ids, _ in encode_all(model.tokenizer, [_pieces(model, *record, in_turns) for record in records])]


def prompt_report(model: Loaded, *, raw: bool = False) -> str:
    """How a record's `prompt` is read, for a line of output."""
    if not model.is_chat:
        return "prompt: plain text to go on from; the model's files have no chat template and declare no end of turn"
    if raw:
        return "prompt: plain text to go on from (--raw), though the model is tuned for conversations"
    folder = isinstance(model.template, FolderTemplate)
    template = model.template.where if folder else "the default chat template"
    return f"prompt: one user message, by {template}; --raw takes it as plain text to go on from"


def _pieces(model: Loaded, where: str, record: Record, in_turns: bool) -> list[Piece]:
    if "prompt" in record and not in_turns:
        return [Piece(record["prompt"])]
    if record.get("tools") and isinstance(model.template, FolderTemplate) and not model.template.reads(["tools"]):
        raise ValueError(f"{where}: the chat template of {model.template.where} reads no tools; leave them out")
    messages = [{"role": "user", "content": record["prompt"]}] if "prompt" in record else record["messages"]
    try:
        template = with_reasoning(model.template, messages)
        return template.render(messages, tools=record.get("tools", ()), prompt=True)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
