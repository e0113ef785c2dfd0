"""The tokens that end an answer: those that a folder's files declare, and those of Ling and Ring."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from etils import epath
from tokenizers import Tokenizer

from ling_jax.chat.folder_template import CONFIG_NAME, FolderTemplate, read_object, token_text
from ling_jax.chat.template import END, ChatTemplate, encode
from ling_jax.data.tokenizer import EOS
from ling_jax.files import replacing
from ling_jax.messages import shown
from ling_jax.paths import as_path

GENERATION_CONFIG = "generation_config.json"
TOKENS_MAP = "special_tokens_map.json"
KEY = "eos_token_id"


def declared_end_ids(
    config: Mapping[str, Any], folder: str | Path, tokenizer: Tokenizer, vocab_size: int
) -> frozenset[int]:
    """The ids of the end tokens that a folder declares.

    These are `eos_token_id` of `config` (config.json) and of generation_config.json, and `eos_token` of
    tokenizer_config.json and special_tokens_map.json if the tokenizer has it. Raises ValueError that names file and
    value where a value is no id below the model's `vocab_size`.
    """
    folder = as_path(folder)
    generation = read_object(folder / GENERATION_CONFIG)
    found = _ids(config, "config.json", vocab_size) | _ids(generation, str(folder / GENERATION_CONFIG), vocab_size)
    for name in (CONFIG_NAME, TOKENS_MAP):
        token = tokenizer.token_to_id(token_text(read_object(folder / name).get("eos_token")))
        found |= set() if token is None else {token}
    return frozenset(found)


def _ids(config: Mapping[str, Any], where: str, vocab_size: int) -> set[int]:
    value = config.get(KEY)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            expected = f"the id of a token, below {vocab_size}, or a list of them"
            raise ValueError(f"{where}: {KEY} is {shown(value)}; expected {expected}")
    return set(ids)


def end_ids(tokenizer: Tokenizer, declared: Collection[int] = ()) -> frozenset[int]:
    """The ids that end a text: the declared ones, and the tokenizer's ends of a document and of a turn.

    Raises ValueError where there is none, since no answer would end.
    """
    known = {token for name in (EOS, END) if (token := tokenizer.token_to_id(name)) is not None}
    if not (found := frozenset(known) | set(declared)):
        raise ValueError(
            f"nothing ends a text: the tokenizer has neither {EOS} nor {END}, and no file declares an eos token; add "
            f"{KEY} to {GENERATION_CONFIG}"
        )
    return found


def token_texts(tokenizer: Tokenizer, ids: Collection[int]) -> list[str]:
    """The texts of token ids, in the order of ids; ids without a token are skipped."""
    return [text for token in sorted(ids) if (text := tokenizer.id_to_token(token)) is not None]


def save_end_ids(ids: Collection[int], folder: epath.PathLike) -> None:
    """Writes `eos_token_id` into generation_config.json, whole or not at all; other keys stay."""
    path = as_path(folder) / GENERATION_CONFIG
    known = read_object(path)
    with replacing(path) as file:
        file.write(json.dumps(known | {KEY: sorted(ids)}, indent=1).encode())


def check_turns_end(template: ChatTemplate | FolderTemplate, tokenizer: Tokenizer, ends: Collection[int]) -> None:
    """Raises ValueError where no trained token of the template ends a turn, since a model would never learn to stop.

    It tries a short conversation. A template that refuses it raises later, with the record.
    """
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    try:
        ids, mask = encode(tokenizer, template.render(messages))
    except ValueError:
        return
    trained = [token for token, kept in zip(ids, mask, strict=True) if kept]
    if not set(ends) & set(trained):
        names = ", ".join(token_texts(tokenizer, ends))
        where = template.where if isinstance(template, FolderTemplate) else "ling_jax.chat.template"
        raise ValueError(
            f"the chat template of {where} ends the assistant's turn with none of the end tokens ({names}): a model "
            f"would learn never to stop; declare what ends a turn as {KEY} in {GENERATION_CONFIG}"
        )
