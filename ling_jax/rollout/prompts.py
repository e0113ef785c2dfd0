"""Records with a prompt to tokens."""

from collections.abc import Iterable
from typing import Any

from ling_jax.chat.template import Piece, encode_all
from ling_jax.checkpoint.folder import Loaded


def encode_prompts(model: Loaded, records: Iterable[tuple[str, dict[str, Any]]]) -> list[list[int]]:
    """Tokens of the prompt of each (where it stands, record): `prompt` as plain text, `messages` by the chat template.

    Raises ValueError that says where a template refuses its messages.
    """
    return [ids for ids, _ in encode_all(model.tokenizer, [_pieces(model, *record) for record in records])]


def _pieces(model: Loaded, where: str, record: dict[str, Any]) -> list[Piece]:
    if "prompt" in record:
        return [Piece(record["prompt"])]
    try:
        return model.template.render(record["messages"], tools=record.get("tools", ()), prompt=True)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
