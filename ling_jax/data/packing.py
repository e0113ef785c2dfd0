"""Tokenised documents on disk, and the plan that packs them into rows of a fixed length."""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import sys
import time
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath
from tokenizers import Tokenizer

from ling_jax.data import sources
from ling_jax.data.small_splits import SPLITS, split_by_position
from ling_jax.data.sources import Source, TokenDocuments, TokenFile, open_documents
from ling_jax.data.tokenizer import encode_documents, eos_id, largest_id, tokenizer_digest
from ling_jax.files import new_folder, read_object, replacing
from ling_jax.paths import as_path, files_below, is_new, is_remote
from ling_jax.sums import DamagedFile, checks, compare, read_sealed, sums_of, write_sealed

IGNORED_LABEL = -100
REPORT_SECONDS = 5
DERIVED_KEYS = ("fingerprint", "dtype", "vocab_size", "eos_id")  # of meta.json: they follow from the others
PLAN_ARRAYS = ("row_offsets", "piece_doc", "piece_start", "piece_length")
CORPUS_FILES = re.compile(
    r"meta\.json|(train|held_out)(/(meta\.json|offsets\.npy|tokens\.bin|trained\.bin|\.?pack_\d+_\d+\.npz.*))?"
)


class Document(NamedTuple):
    split_by: str | bytes  # its hash decides whether the document is held out
    ids: np.ndarray
    trained: np.ndarray | None = None  # bool: whether each id is trained on; None: all


def tokenize(
    source: Source, tokenizer: Tokenizer, folder: str | Path, *, held_out_fraction: float, replace: bool = False
) -> dict:
    """Tokenises a source into <folder>/train and <folder>/held_out; returns <folder>/meta.json.

    Each document ends with eos. A hash of its text decides whether it is held out (`is_held_out`); where all would be
    on one side, its position does (`split_by_position`). The folder appears whole or not at all. A folder of the same
    source, tokenizer and fraction is reused; another corpus is replaced with `replace`, else it is a ValueError. Prints
    a line of progress every few seconds.
    """
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"held_out_fraction is {held_out_fraction}; it must be at least 0 and below 1")
    about = {"source": repr(source), "held_out_fraction": held_out_fraction}
    return write_documents(
        _encoded(source, tokenizer), tokenizer, folder, about, digest=sources.source_digest(source), replace=replace
    )


def write_documents(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: str | Path,
    about: dict[str, Any],
    *,
    digest: str,
    replace: bool = False,
) -> dict:
    """Writes tokenised documents as `tokenize` does; returns <folder>/meta.json.

    `about` holds JSON values with "source" and "held_out_fraction"; they go into meta.json, with those that are added
    while the documents are read. `digest` and all of `about` but "source" identify the corpus.
    """
    folder = as_path(folder)
    meta = _describe(about, tokenizer, digest)
    if present := _present_meta(folder, meta, replace=replace):
        return present
    try:
        with new_folder(folder) as partial:
            meta |= _write_splits(documents, partial, meta) | about
            meta["files"] = sums_of(partial, files_below(partial), flush=True)
            write_sealed(meta, partial / "meta.json")
    except OSError:  # another process was first; that is fine if it wrote the same corpus
        if not _present_meta(folder, meta):
            raise
    return meta


def _describe(about: dict[str, Any], tokenizer: Tokenizer, digest: str) -> dict:
    vocab_size, tokenizer_is = largest_id(tokenizer) + 1, tokenizer_digest(tokenizer)
    rest = {key: value for key, value in about.items() if key != "source"}  # the place of a source does not matter
    whole = repr((digest, tokenizer_is, sorted(rest.items()))).encode()
    return {
        "fingerprint": hashlib.blake2b(whole, digest_size=16).hexdigest(),
        **about,
        "tokenizer": tokenizer_is,
        "dtype": "uint16" if vocab_size <= 1 << 16 else "uint32",
        "vocab_size": vocab_size,
        "eos_id": about["eos_id"] if "eos_id" in about else eos_id(tokenizer),
    }


def _present_meta(folder: Path, wanted: dict, *, replace: bool = False) -> dict | None:
    """meta.json of an existing folder with the wanted corpus; None where the folder does not exist.

    Another corpus is removed with `replace`, else it is a ValueError; a folder without a corpus always is.
    """
    if is_new(folder):
        return None
    if not (folder / "meta.json").is_file():
        raise ValueError(f"{folder} is there, but without a meta.json: not a tokenised corpus; name another folder")
    found = _read_meta(folder)
    if replace and found.get("fingerprint", wanted["fingerprint"]) != wanted["fingerprint"]:
        _remove_corpus(folder)
        return None
    if found.get("fingerprint") != wanted["fingerprint"]:
        differ = [key for key in wanted if key not in DERIVED_KEYS and found.get(key) != wanted[key]]
        changes = [f"{key} was {found.get(key)} and is {wanted[key]}" for key in differ]
        why = "; ".join(changes) or f"the files of {wanted['source']} have changed"
        raise ValueError(f"{folder} holds another corpus: {why}; remove the folder, or name another")
    if checks.verify and "files" in found:
        with _advice(folder):
            compare(folder, found["files"])
    return found


def _read_meta(folder: Path) -> dict[str, Any]:
    """meta.json without its own checksum, which earlier versions did not write."""
    path, expected = folder / "meta.json", "that of a tokenised corpus; remove the folder, or name another"
    found = read_object(path, expected)
    if "crc32c" in found or "files" in found:
        with _advice(folder):
            return read_sealed(path, expected)
    if "fingerprint" in found:
        print(f"{folder} was tokenised by an earlier version: its bytes are not verified", file=sys.stderr, flush=True)
    return found


@contextlib.contextmanager
def _advice(folder: Path) -> Iterator[None]:
    try:
        yield
    except DamagedFile as error:
        raise DamagedFile(f"{error}; remove {folder}, and the same command makes it again") from None


def _remove_corpus(folder: Path) -> None:
    """Removes a tokenised corpus. Raises ValueError, and removes nothing, if it holds a link or a foreign file."""
    if is_remote(folder):
        foreign = [folder / name for name in files_below(folder) if not CORPUS_FILES.fullmatch(name)]
        links = []
    else:
        found = [folder, *folder.rglob("*")]
        foreign = [path for path in found[1:] if not CORPUS_FILES.fullmatch(path.relative_to(folder).as_posix())]
        links = [path for path in found if path.is_symlink()]
    if other := links + foreign:
        raise ValueError(
            f"{folder} is to be replaced by another corpus and {other[0]} is no file of one; move it away, or name "
            "another folder"
        )
    epath.Path(folder).rmtree()


def _write_splits(documents: Iterable[Document], folder: Path, meta: dict) -> dict:
    """Writes a token folder for each split; returns {split: {"documents", "tokens"}} and "held_out_by"."""
    dtype, fraction = np.dtype(meta["dtype"]).newbyteorder("<"), meta["held_out_fraction"]
    lengths, hashes = _write_tokens(documents, folder, dtype, fraction)
    by_position = fraction > 0 and not all(lengths.values())
    if by_position:
        held_out = split_by_position(folder, lengths, hashes, dtype, fraction)
        small = f"{len(hashes)} document(s) are too few to be split by their hashes"
        print(f"tokenize: {small}; held out is {held_out or 'nothing, since they cannot be split'}", flush=True)
    for split in SPLITS:
        np.save(folder / split / "offsets.npy", np.cumsum([0, *lengths[split]], dtype=np.int64))
        about = {key: meta[key] for key in ("dtype", "vocab_size", "eos_id", "tokenizer")}
        (folder / split / "meta.json").write_text(json.dumps(about, indent=1))
    counts = {split: {"documents": len(lengths[split]), "tokens": sum(lengths[split])} for split in SPLITS}
    return counts | {"held_out_by": "position" if by_position else "hash"}


def _write_tokens(
    documents: Iterable[Document], folder: Path, dtype: np.dtype, fraction: float
) -> tuple[dict[str, array], array]:
    """Writes tokens.bin and trained.bin of each split; returns (lengths by split, the hash of each document)."""
    lengths, hashes = {split: array("q") for split in SPLITS}, array("Q")
    start = reported = time.monotonic()
    with contextlib.ExitStack() as stack:

        def open_in(split: str, name: str) -> BinaryIO:
            return stack.enter_context((folder / split / name).open("ab"))

        for split in SPLITS:
            (folder / split).mkdir(parents=True)
        tokens = {split: open_in(split, "tokens.bin") for split in SPLITS}
        trained = {}
        for document in documents:
            hashes.append(sources.split_hash(document.split_by))
            split = "held_out" if sources.is_held_out(hashes[-1], fraction) else "train"
            tokens[split].write(document.ids.astype(dtype).tobytes())
            lengths[split].append(len(document.ids))
            if document.trained is not None:
                trained = trained or {split: open_in(split, "trained.bin") for split in SPLITS}
                trained[split].write(document.trained.astype(bool).tobytes())
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                _report(lengths, reported - start)
    _report(lengths, time.monotonic() - start)
    return lengths, hashes


def _encoded(source: Source, tokenizer: Tokenizer) -> Iterator[Document]:
    """The documents with eos; their text, or the bytes of given ids, decides the split."""
    end = eos_id(tokenizer)
    if isinstance(source, TokenFile):
        for ids in _given_ids(source, tokenizer):
            yield Document(ids.tobytes(), ids if ids[-1] == end else np.append(ids, end))
        return
    texts, to_encode = itertools.tee(sources.documents(source))
    for text, ids in zip(texts, encode_documents(tokenizer, to_encode), strict=True):
        yield Document(text, np.append(ids, end))


def _given_ids(source: TokenFile, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The documents of a token folder. Raises ValueError where its meta.json names another tokenizer."""
    given = open_documents(source.path)
    theirs = (given.vocab_size, given.eos_id, given.tokenizer)
    ours = (largest_id(tokenizer) + 1, eos_id(tokenizer), tokenizer_digest(tokenizer) if given.tokenizer else "")
    if theirs != ours:
        raise ValueError(f"{source.path} is of another tokenizer: (vocab_size, eos_id, digest) {theirs}, not {ours}")
    if not given.num_tokens:
        raise ValueError(f"{source.path} is an empty corpus: its tokens.bin holds no token; name another folder")
    for i in range(len(given)):
        ids = given.doc(i).astype(np.uint32)
        if ids.size and ids.max() >= given.vocab_size:
            raise ValueError(f"{source.path}, document {i} has token {ids.max()}; vocab_size is {given.vocab_size}")
        if ids.size:
            yield ids


def _report(lengths: dict[str, array], seconds: float) -> None:
    documents, tokens = (sum(map(count, lengths.values())) for count in (len, sum))
    print(f"tokenize: {documents=} {tokens=} tokens_per_second={tokens / max(seconds, 1e-9):.0f}", flush=True)


@dataclasses.dataclass(frozen=True, eq=False)
class PackPlan:
    """The pieces of documents in each row: row r has the pieces row_offsets[r] : row_offsets[r + 1]."""

    sequence_length: int
    seed: int
    row_offsets: np.ndarray  # [rows + 1]
    piece_doc: np.ndarray  # [pieces], as the next two
    piece_start: np.ndarray
    piece_length: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.piece_length.sum(dtype=np.int64))


def pack_plan(lengths: np.ndarray, sequence_length: int, seed: int) -> PackPlan:
    """Packs documents of `lengths` (int [documents]) into rows of `sequence_length`; each token is in one row.

    Documents are shuffled, and those longer than a row are cut from their start on. Pieces go, longest first, to the
    fullest row that has room (best-fit decreasing); then rows are shuffled. O(n log n), and a pure function of its
    arguments. Raises ValueError on a sequence length below 2.
    """
    if sequence_length < 2:
        raise ValueError(f"sequence_length is {sequence_length}; a row needs at least 2 tokens to predict one")
    lengths, rng = np.asarray(lengths, np.int64), np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    num_pieces = -(-lengths[order] // sequence_length)
    doc = np.repeat(order, num_pieces)
    first_piece = np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    start = (np.arange(len(doc)) - first_piece) * sequence_length
    length = np.minimum(sequence_length, lengths[doc] - start)
    row = best_fit_decreasing(length, sequence_length)
    num_rows = row.max(initial=-1) + 1
    row = rng.permutation(num_rows)[row]
    by_row = np.argsort(row, kind="stable")  # inside a row, pieces stay in the shuffled order of documents
    row_offsets = np.cumsum(np.concatenate([[0], np.bincount(row, minlength=num_rows)]))
    arrays = (row_offsets, doc[by_row], start[by_row], length[by_row])
    compact = (values.astype(np.int32 if values.max(initial=0) < 2**31 else np.int64) for values in arrays)
    return PackPlan(sequence_length, seed, *compact)


def best_fit_decreasing(length: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each piece, [pieces]: longest first, the fullest row with room for it, else a new one."""
    row = np.empty(len(length), np.int64)
    with_room: list[list[int]] = [[] for _ in range(capacity)]  # open rows by the room that they have
    rooms: list[int] = []  # the sizes of room that some row has, sorted
    num_rows = 0
    longest_first = np.argsort(-length, kind="stable")
    for piece, size in zip(longest_first.tolist(), length[longest_first].tolist(), strict=True):
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            room, row[piece], num_rows = capacity, num_rows, num_rows + 1
        else:
            room = rooms[at]
            row[piece] = with_room[room].pop()
            if not with_room[room]:
                del rooms[at]
        if left := room - size:
            if not with_room[left]:
                bisect.insort(rooms, left)
            with_room[left].append(int(row[piece]))
    return row


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of a plan by random access (a grain data source).

    Row i is {"tokens", "labels", "segment_ids", "positions"}, int32 [sequence_length] each. Labels are the tokens, and
    -100 on padding and on tokens that are not trained on. Segments count 1, 2, … along the row; 0 is padding. Positions
    start at 0 in each piece. Padding tokens are eos.
    """

    documents: TokenDocuments
    plan: PackPlan

    @property
    def sequence_length(self) -> int:
        return self.plan.sequence_length

    @property
    def num_tokens(self) -> int:
        return self.plan.num_tokens

    def __len__(self) -> int:
        return self.plan.num_rows

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        plan, documents = self.plan, self.documents
        row = empty_row(plan.sequence_length, documents.eos_id)
        begin = 0
        for segment, piece in enumerate(range(plan.row_offsets[i], plan.row_offsets[i + 1]), start=1):
            length = int(plan.piece_length[piece])
            start = int(documents.offsets[plan.piece_doc[piece]]) + int(plan.piece_start[piece])
            here = slice(begin, begin + length)
            row["tokens"][here] = row["labels"][here] = documents.tokens[start : start + length]
            if documents.trained is not None:
                row["labels"][here][~documents.trained[start : start + length]] = IGNORED_LABEL
            row["segment_ids"][here] = segment
            row["positions"][here] = np.arange(length)
            begin += length
        return row


def empty_row(sequence_length: int, eos_id: int) -> dict[str, np.ndarray]:
    """A row of padding, int32 [sequence_length] for each field."""
    values = {"tokens": eos_id, "labels": IGNORED_LABEL, "segment_ids": 0, "positions": 0}
    return {name: np.full(sequence_length, value, np.int32) for name, value in values.items()}


def packed_rows(folder: str | Path, sequence_length: int, seed: int) -> PackedRows:
    """The packed rows of a token folder; the plan is kept beside the tokens and reused.

    Raises FileNotFoundError or ValueError as `open_documents`, and ValueError on the plan of other tokens.
    """
    documents = open_documents(folder)
    path = documents.folder / f"pack_{sequence_length}_{seed}.npz"
    made_for = np.array([sequence_length, seed, len(documents), documents.num_tokens])
    plan = _kept_plan(path, made_for)
    if plan is None:
        plan = pack_plan(documents.lengths, sequence_length, seed)
        with contextlib.suppress(OSError), replacing(path) as file:  # a corpus may be read-only
            np.savez(file, made_for=made_for, **{name: getattr(plan, name) for name in PLAN_ARRAYS})
    if plan.num_tokens != documents.num_tokens:
        raise ValueError(f"{path} plans {plan.num_tokens} tokens; {folder} has {documents.num_tokens}; remove the plan")
    return PackedRows(documents, plan)


def _kept_plan(path: Path, made_for: np.ndarray) -> PackPlan | None:
    """The plan of a file; None where it is missing, damaged or of another corpus."""
    try:
        with np.load(path) as arrays:  # a zip archive, which has checksums
            if "made_for" in arrays and not np.array_equal(arrays["made_for"], made_for):
                return None
            return PackPlan(*made_for[:2].tolist(), **{name: arrays[name] for name in PLAN_ARRAYS})
    except FileNotFoundError:
        return None
    except Exception as error:  # of any type, depending on the damage
        print(f"{path} is damaged ({type(error).__name__}) and is made again", file=sys.stderr, flush=True)
        return None


def validate_batch(batch: dict[str, np.ndarray], *, vocab_size: int, max_length: int) -> None:
    """Checks the values of a batch of rows on the host ([B, T] for each field of `PackedRows`).

    Raises ValueError that names the field, the index, the value and what is expected.
    """
    fields = tuple(empty_row(1, 0))
    if missing := [name for name in fields if name not in batch]:
        raise ValueError(f"the batch has no {missing[0]!r}; found {', '.join(batch) or 'nothing'}")
    tokens, labels, segment_ids, positions = (np.asarray(batch[name]) for name in fields)
    for name, values in zip(fields, (tokens, labels, segment_ids, positions), strict=True):
        if values.ndim != 2 or values.shape != tokens.shape or values.dtype.kind not in "iu":
            found = f"batch[{name!r}] is {values.dtype}{list(values.shape)}"
            raise ValueError(f"{found}; expected integers [batch, length], shaped as tokens, {list(tokens.shape)}")
    _check("tokens", tokens, (tokens >= 0) & (tokens < vocab_size), f"0 <= token < vocab_size = {vocab_size}")
    _check("labels", labels, (labels == tokens) | (labels == IGNORED_LABEL), f"the token there, or {IGNORED_LABEL}")
    _check("segment_ids", segment_ids, segment_ids >= 0, "0 (padding) or more")
    _check("positions", positions, (positions >= 0) & (positions < max_length), f"0 <= position < {max_length}")


def _check(name: str, values: np.ndarray, good: np.ndarray, expected: str) -> None:
    if not good.all():
        row, column = np.argwhere(~good)[0].tolist()
        raise ValueError(f"batch[{name!r}][{row}, {column}] is {values[row, column]}; expected {expected}")
