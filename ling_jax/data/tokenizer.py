"""Byte-level BPE: train, save, load, and encode documents as plain text."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ling_jax.files import replacing

EOS = "<|endoftext|>"  # also the padding of base models
SPECIAL_TOKENS = (EOS, "<|startoftext|>", "<|role_end|>", "<role>", "</role>", "<think>", "</think>")
FILE_NAME = "tokenizer.json"
BATCH_CHARACTERS = 1 << 20  # encoded at once: enough for all threads, little to hold


def train_bpe(texts: Iterable[str], vocab_size: int, *, words: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens: the special ones (ids 0-6), all 256 bytes, merges, `words`.

    No merge has a digit in it: a model that reads numbers digit by digit learns to calculate sooner (our choice).
    `words` are strings that are one token wherever they stand, in plain text too. The same texts give the same
    tokenizer. Few texts may not have enough pairs to fill the vocabulary. Raises ValueError on a vocabulary without
    room for what is no merge.
    """
    least = len(SPECIAL_TOKENS) + 256 + len(words)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size is {vocab_size}; special tokens, the 256 bytes and {len(words)} words are {least}"
        )
    tokenizer = Tokenizer(models.BPE())
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(words),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(words))
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: epath.PathLike) -> epath.Path:
    """Writes `folder`/tokenizer.json, whole or not at all; returns its path."""
    path = epath.Path(folder) / FILE_NAME
    with replacing(path) as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    return path


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of a folder that holds one."""
    path = epath.Path(path).expanduser()
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a {FILE_NAME} or a folder that holds one")
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is not a tokenizer of the `tokenizers` library: {error}") from error


def eos_id(tokenizer: Tokenizer) -> int:
    """Id of <|endoftext|>, which closes documents and pads rows."""
    token = tokenizer.token_to_id(EOS)
    if token is None:
        raise ValueError(f"the tokenizer has no token {EOS!r}, which closes documents; add it as a special token")
    return token


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Hex digest that tells tokenizers apart."""
    return hashlib.blake2b(tokenizer.to_str().encode(), digest_size=16).hexdigest()


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of each text, uint32 [length], in order and streaming; nothing is added.

    A text that spells a special token ("<role>") is plain text here: what a document says must not end it or open a
    role. The caller's tokenizer is not changed.
    """
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True  # the library's name for: special tokens are encoded like other text
    for batch in _batches(texts):
        for encoding in plain.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.uint32)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
