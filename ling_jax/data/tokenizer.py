"""Byte-level BPE tokenizers: training, files, and encoding of documents as plain text."""

import contextlib
import hashlib
import itertools
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

from ling_jax.data.text_files import FORMAT_BYTES, wrong_format
from ling_jax.files import replacing
from ling_jax.paths import as_path

EOS = "<|endoftext|>"  # also the padding of base models
SPECIAL_TOKENS = (EOS, "<|startoftext|>", "<|role_end|>", "<role>", "</role>", "<think>", "</think>")
FILE_NAME = "tokenizer.json"
BATCH_CHARACTERS = 1 << 20  # of texts that are encoded at once: work for all threads in little memory
PIECE_CHARACTERS = 1 << 18  # of a piece of a long text
AHEAD = 4  # words; the usual regular expressions look one word ahead
MARGIN = 1024  # characters: longer than any added token
_PLAIN: weakref.WeakKeyDictionary[Tokenizer, tuple[tuple, Tokenizer]] = weakref.WeakKeyDictionary()
PROBE = "It's 42 words,\n\n  or\tnot… größer 日本 " + "a" * 64


def train_bpe(texts: Iterable[str], vocab_size: int, *, words: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens: the special ones (ids 0-6), all 256 bytes, merges, `words`.

    No merge contains a digit, because a model that reads numbers digit by digit learns to calculate sooner (our
    choice). `words` are strings that are always one token, in plain text too. The same texts give the same tokenizer;
    few texts may not fill the vocabulary. Raises ValueError on a vocabulary without room for special tokens, bytes and
    words.
    """
    needed = len(SPECIAL_TOKENS) + 256 + len(words)
    if vocab_size < needed:
        raise ValueError(
            f"vocab_size is {vocab_size}; special tokens, the 256 bytes and {len(words)} words are {needed}"
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
    """Writes `folder`/tokenizer.json, whole or not at all, and returns its path. Raises OSError."""
    path = as_path(folder) / FILE_NAME
    with replacing(path) as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    return path


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of a folder with one. Raises FileNotFoundError or ValueError."""
    path = as_path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a {FILE_NAME} or a folder that holds one")
    content = path.read_bytes()
    if reason := wrong_format(content[:FORMAT_BYTES]):
        raise ValueError(f"{path} {reason}")
    try:
        tokenizer = Tokenizer.from_str(content.decode())
        tokenizer.encode(PROBE)  # a broken regular expression fails at its first use
    except BaseException as error:
        if not _is_library_error(error) and not isinstance(error, UnicodeDecodeError):
            raise
        raise ValueError(f"{path} is not a tokenizer of the `tokenizers` library: {error}") from None
    return tokenizer


def _is_library_error(error: BaseException) -> bool:
    """Whether an error is the library's: a plain Exception, or a BaseException after a panic of its Rust code."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def eos_id(tokenizer: Tokenizer) -> int:
    """The id of <|endoftext|>, which ends documents and pads rows. Raises ValueError without that token."""
    token = tokenizer.token_to_id(EOS)
    if token is None:
        raise ValueError(f"the tokenizer has no token {EOS!r}, which closes documents; add it as a special token")
    return token


def largest_id(tokenizer: Tokenizer) -> int:
    """The largest token id; -1 without tokens. Ids may have gaps, so the number of tokens is no bound."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Hex digest of a tokenizer."""
    return hashlib.blake2b(tokenizer.to_str().encode(), digest_size=16).hexdigest()


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of each text, uint32 [length], in order and as a stream, without added tokens or truncation.

    The names of special tokens ("<role>") in a text are plain text, so that a document cannot end itself or open a
    role. The given tokenizer is not changed. Raises ValueError on a text for which the tokenizer fails.

    A text of more than PIECE_CHARACTERS is encoded in pieces (`_encode_in_pieces`) in linear time and bounded memory:
    the library takes about 100 bytes for each character.
    """
    plain = _kept_plain(tokenizer)
    for batch in _batches(texts):
        if len(batch[0]) > PIECE_CHARACTERS:
            yield np.concatenate(list(_encode_in_pieces(plain, batch[0])))
            continue
        with _library_errors():
            encodings = plain.encode_batch_fast(batch, add_special_tokens=False)
        for encoding in encodings:
            yield np.array(encoding.ids, dtype=np.uint32)


def _kept_plain(tokenizer: Tokenizer) -> Tokenizer:
    """`_plain`, cached until the tokenizer changes, because many calls have a few words each."""
    state = (tokenizer.get_vocab_size(), repr(tokenizer.normalizer), repr(tokenizer.pre_tokenizer))
    kept = _PLAIN.get(tokenizer)
    if kept is None or kept[0] != state:
        kept = _PLAIN[tokenizer] = (state, _plain(tokenizer))
    return kept[1]


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that encodes special tokens like other text; it shares the model, and so the vocabulary."""
    plain = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        plain.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        plain.pre_tokenizer = tokenizer.pre_tokenizer
    added = tokenizer.get_added_tokens_decoder()
    for special, tokens in itertools.groupby((added[id] for id in sorted(added)), key=lambda token: token.special):
        (plain.add_special_tokens if special else plain.add_tokens)(list(tokens))
    if plain.get_added_tokens_decoder().keys() != added.keys():  # a vocabulary with gaps keeps its ids only in a file
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
        plain.post_processor = None
    plain.encode_special_tokens = True  # the library's name for: special tokens are encoded like other text
    return plain


@contextlib.contextmanager
def _library_errors() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not _is_library_error(error):
            raise
        raise ValueError(f"the tokenizer fails on a text: {error}; correct its tokenizer.json or the text") from None


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Batches of texts of BATCH_CHARACTERS together; texts of more than PIECE_CHARACTERS are batches of their own."""
    batch, characters = [], 0
    for text in texts:
        is_long = len(text) > PIECE_CHARACTERS
        if batch and (is_long or characters >= BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        if is_long:
            yield [text]
            continue
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _encode_in_pieces(plain: Tokenizer, text: str) -> Iterator[np.ndarray]:
    """The ids of a long text, piece by piece; they equal those of the whole text if it has boundaries between words.

    Words are those of the pre-tokenizer; no token crosses their boundaries. A piece ends at a word with at least AHEAD
    words and MARGIN characters after it, because the end of the last words may depend on what follows. A piece is
    encoded together with the AHEAD words before it, because a tokenizer may treat the start of a text differently.

        text     ...|w|w|w|w|w|w|w|w|w|w|w|w|w|w|w|w|w|...
        piece 1  ids of these words --->|  AHEAD   |         encoded, and left to piece 2
        piece 2           | AHEAD |ids of these words ...

    If no word ends within PIECE_CHARACTERS (a long run of one letter), the piece ends in the middle of a word. Only
    there may ids differ from those of the whole text.
    """
    context = start = 0  # ids of text[start:] are to come; text[context:start] is encoded with it
    while start < len(text):
        with _library_errors():
            encoding = plain.encode(text[context : start + PIECE_CHARACTERS], add_special_tokens=False)
        ids = np.array(encoding.ids, np.uint32)
        first_tokens, at = _words(encoding)
        found = np.flatnonzero(at == start - context)
        if context < start and not len(found):  # words begin elsewhere behind this context
            context = start
            continue
        first = first_tokens[found[0]] if context < start else 0
        if start + PIECE_CHARACTERS >= len(text):
            yield ids[first:]
            return
        ends = np.flatnonzero((at > start - context) & (at <= start + PIECE_CHARACTERS - context - MARGIN))
        ends = ends[ends < len(at) - AHEAD]
        if not len(ends):
            yield ids[first:]
            context = start = start + PIECE_CHARACTERS
            continue
        end = ends[-1]
        yield ids[first : first_tokens[end]]
        context, start = context + int(at[max(end - AHEAD, 0)]), context + int(at[end])


def _words(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """(the first token, the first character) of each word; a prefix that the tokenizer adds to a word belongs to it."""
    words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
    first_tokens = np.flatnonzero(np.diff(words, prepend=-1))
    offsets = encoding.offsets
    at, first = np.unique([offsets[token][0] for token in first_tokens], return_index=True)
    return first_tokens[first], at
