"""The bytes of the tokens of a byte-level tokenizer."""

import functools

from tokenizers import Tokenizer

from ling_jax.data.tokenizer import largest_id


def token_bytes(tokenizer: Tokenizer) -> tuple[list[bytes], list[bool]]:
    """(bytes of every id up to the largest, whether it is a special token).

    The bytes of a special token are its name; an id without a token has no bytes.
    Raises ValueError on a tokenizer that is not byte-level.
    """
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = range(largest_id(tokenizer) + 1)
    return [_bytes(tokenizer, id, id in special) for id in ids], [id in special for id in ids]


def _bytes(tokenizer: Tokenizer, id: int, special: bool) -> bytes:
    text = tokenizer.id_to_token(id)
    if text is None:
        return b""
    if special:
        return text.encode()
    try:
        return bytes(_alphabet()[character] for character in text)
    except KeyError as error:
        raise ValueError(f"token {id} is {text!r}, and {error} stands for no byte; expected a byte-level BPE") from None


@functools.cache
def _alphabet() -> dict[str, int]:
    """The character that stands for each byte: itself where it can be printed, else one from 256 on (GPT-2)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}
