"""The data of a run: tokenizer, token folders and packed rows, made once in the workdir and reused."""

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import grain
from etils import epath
from tokenizers import Tokenizer

from ling_jax import data
from ling_jax.config import ModelConfig
from ling_jax.data.tokenizer import largest_id
from ling_jax.paths import as_path
from ling_jax.preflight import check_folder, check_space, stored_bytes
from ling_jax.run.workdir import has_checkpoint
from ling_jax.train.config import DataConfig, open_source

TOKEN_SHARE = 0.25  # least bytes of ids for a byte of text: a token of eight bytes has an id of two; our choice


@dataclasses.dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: grain.MapDataset  # endless
    held_out: tuple[data.PackedRows, ...]  # of each source with held-out documents
    train_rows: int
    train_tokens: int


def prepare_corpus(
    config: DataConfig,
    model: ModelConfig,
    workdir: epath.Path,
    *,
    replace: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Trains or loads the tokenizer where none is given, then tokenises and packs; existing files are used again.

    With `replace`, tokens of another corpus in the workdir are replaced.

    Raises FileNotFoundError on missing sources, ValueError on empty ones and on a tokenizer with more ids than the
    model, and OSError where the disk lacks space.
    """
    check_token_space(_made_of(config, workdir))  # before the tokenizer is trained, which may take long
    tokenizer = tokenizer or _tokenizer(config, model, workdir)
    folders = tokenize_sources(config, tokenizer, workdir, replace=replace)
    weights = [source.weight for source in config.sources]
    return packed_corpus(folders, weights, tokenizer, config.sequence_length, config.seed)


def tokenize_sources(
    config: DataConfig, tokenizer: Tokenizer, workdir: epath.Path, *, replace: bool = False
) -> list[Path]:
    """The token folders of the sources; missing ones are made."""
    check_token_space(made_of := _made_of(config, workdir))
    folders = list(made_of)
    for source, where in zip(config.sources, folders, strict=True):
        replaces = replace and not config.folder
        data.tokenize(
            open_source(source), tokenizer, where, held_out_fraction=config.held_out_fraction, replace=replaces
        )
    return folders


def check_token_space(made_of: Mapping[Path, Iterable[Path]]) -> None:
    """Raises OSError where a missing token folder cannot be written, or its disk lacks space for the tokens.

    `made_of` is {token folder: files of its source}. The size is a lower bound, so that no disk is refused wrongly.
    """
    new = {where: files for where, files in made_of.items() if not where.exists()}
    for folder in {where.parent for where in new}:
        check_folder(folder)
        check_space(folder, int(TOKEN_SHARE * stored_bytes([*itertools.chain(*new.values())])), "tokens of the sources")


def _made_of(config: DataConfig, workdir: epath.Path) -> dict[Path, Iterable[Path]]:
    """{token folder: files of its source}."""
    folder = token_folder(config.folder, workdir)
    return {
        folder / f"{i}_{source.kind}": data.source_files(open_source(source)).values()
        for i, source in enumerate(config.sources)
    }


def token_folder(named: str, workdir: epath.Path) -> Path | epath.Path:
    """The folder of tokens: the one that the config names, or `data` in the workdir."""
    return as_path(named or workdir / "data")


def packed_corpus(
    folders: Sequence[Path], weights: Sequence[float], tokenizer: Tokenizer, sequence_length: int, seed: int
) -> Corpus:
    """The corpus of token folders, each with train/ and held_out/, mixed by weight."""
    train = [data.packed_rows(where / "train", sequence_length, seed) for where in folders]
    held_out = [data.packed_rows(where / "held_out", sequence_length, seed) for where in folders]
    return Corpus(
        tokenizer=tokenizer,
        train=data.mixture(train, weights, seed),
        held_out=tuple(rows for rows in held_out if len(rows)),
        train_rows=sum(map(len, train)),
        train_tokens=sum(rows.num_tokens for rows in train),
    )


def with_short_sequences(
    corpus: Corpus,
    folders: Sequence[Path],
    weights: Sequence[float],
    *,
    sequence_length: int,
    short_length: int,
    long_share: float,
    seed: int,
) -> Corpus:
    """The corpus with rows of `sequence_length`, some of which hold several sequences of `short_length` instead.

    `long_share` is the share of long sequences among all sequences, not among rows (report §2.3.2: 20 % of sequences).
    """
    count = sequence_length // short_length
    long = [data.packed_rows(where / "train", sequence_length, seed) for where in folders]
    short = [data.JoinedRows(data.packed_rows(where / "train", short_length, seed), count) for where in folders]
    of_rows = [weight * long_share for weight in weights] + [weight * (1 - long_share) / count for weight in weights]
    return dataclasses.replace(corpus, train=data.mixture([*long, *short], of_rows, seed))


def held_out_batches(
    corpus: Corpus, batch_size: int, max_batches: int, part: Sequence[int] | None = None
) -> Iterator[data.Batch]:
    """At most `max_batches` batches of each source, or the rows `part` of each batch as in `data.global_batch`."""
    for rows in corpus.held_out:
        yield from itertools.islice(data.held_out_batches(rows, batch_size, part), max_batches)


def _tokenizer(config: DataConfig, model: ModelConfig, workdir: epath.Path) -> Tokenizer:
    """The tokenizer that the run has kept, the one that the config names, or one trained on the sources."""
    folder = workdir / "tokenizer"
    kept = has_checkpoint(workdir) and (folder / "tokenizer.json").exists()
    if kept:
        tokenizer, where = data.load_tokenizer(folder), folder
    elif config.tokenizer:
        tokenizer, where = data.load_tokenizer(config.tokenizer), config.tokenizer
    else:
        tokenizer, where = _train_tokenizer(config, model.vocab_size), "the sources' BPE"
    if (needed := largest_id(tokenizer) + 1) > model.vocab_size:
        raise ValueError(
            f"the tokenizer of {where} has ids up to {needed - 1} and model.vocab_size is {model.vocab_size}; name a "
            f"smaller tokenizer or set --config.model.vocab_size={needed}"
        )
    return tokenizer


def _train_tokenizer(config: DataConfig, vocab_size: int) -> Tokenizer:
    print(f"tokenizer: training a byte-level BPE of {vocab_size} tokens", flush=True)
    start = time.monotonic()
    fraction = config.held_out_fraction
    texts = (data.training_documents(open_source(source), fraction) for source in config.sources)
    tokenizer = data.train_bpe(itertools.chain.from_iterable(texts), vocab_size)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens in {time.monotonic() - start:.1f} s", flush=True)
    return tokenizer
