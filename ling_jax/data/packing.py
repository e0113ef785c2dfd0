"""Documents -> token files -> rows of fixed length: planned once, offline, then read by random access.

An index is a folder of one corpus, written by `tokenize`:

    meta.json                  dtype, vocab_size, eos_id, documents and tokens of each split, fingerprint
    train/, held_out/          tokens.bin (every document, each with its eos, end to end), offsets.npy (int64 [documents + 1])
    train/plan-T256-seed0.npz  a packing plan, kept for the next start
"""

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import time
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ling_jax.data.sources import Source, TokenFile, describe, documents, is_held_out
from ling_jax.data.tokenizer import encode_documents, eos_id, fingerprint

SPLITS = ("train", "held_out")
IGNORED = -100  # the label of what is not trained on
CHUNK_CHARS = 1 << 20  # text encoded at one time: enough to feed all threads, little enough to hold
REPORT_SECONDS = 3.0


def tokenize(source: Source, tokenizer: Tokenizer, folder: str | Path, *, held_out_fraction: float) -> Path:
    """Writes the index of a source and returns its folder: `folder`, or a TokenFile's own.

    An index of the same tokenizer, documents and fraction is used as it is; one of others raises ValueError. It is
    written beside its place and renamed, so that nothing half-written is ever found there.
    """
    if isinstance(source, TokenFile):
        return _ready_index(Path(source.path), {"tokenizer": fingerprint(tokenizer)})
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"held_out_fraction is {held_out_fraction}; it must be at least 0 and below 1")
    folder = Path(folder)
    identity = {
        "source": describe(source),
        "tokenizer": fingerprint(tokenizer),
        "held_out_fraction": float(held_out_fraction),
    }
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return _ready_index(folder, identity)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write_index(temporary, source, tokenizer, identity)
        _publish(temporary, folder, identity)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already unless something went wrong
    return folder


def read_meta(folder: str | Path) -> dict[str, Any]:
    """meta.json of an index; FileNotFoundError where there is none, ValueError where it is not one of ours."""
    path = Path(folder).expanduser() / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a tokenised index: it has no meta.json (tokenize writes one)")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if missing := {"dtype", "vocab_size", "eos_id", "splits", "fingerprint"} - set(meta):
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; it was not written by tokenize")
    return meta


def _ready_index(folder: Path, identity: Mapping[str, Any]) -> Path:
    found = read_meta(folder)["fingerprint"]
    if other := {key: found.get(key) for key, value in identity.items() if found.get(key) != value}:
        asked = {key: identity[key] for key in other}
        raise ValueError(f"{folder} holds another index: it is of {other}, asked for is {asked}; use another folder")
    return folder


def _publish(temporary: Path, folder: Path, identity: Mapping[str, Any]) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:  # another process may have been first, with the same index
        _ready_index(folder, identity)


def _write_index(folder: Path, source: Source, tokenizer: Tokenizer, identity: Mapping[str, Any]) -> None:
    vocab_size = tokenizer.get_vocab_size()
    dtype = "uint16" if vocab_size <= 65536 else "uint32"
    eos = eos_id(tokenizer)
    lengths = {split: array("q") for split in SPLITS}
    with contextlib.ExitStack() as stack:
        files = {}
        for split in SPLITS:
            (folder / split).mkdir(parents=True)
            files[split] = stack.enter_context((folder / split / "tokens.bin").open("wb"))
        for text, ids in _encoded(source, tokenizer):
            split = "held_out" if is_held_out(text, identity["held_out_fraction"]) else "train"
            files[split].write(np.array([*ids, eos], dtype).tobytes())
            lengths[split].append(len(ids) + 1)
    for split in SPLITS:
        np.save(folder / split / "offsets.npy", np.concatenate([[0], np.cumsum(lengths[split], dtype=np.int64)]))
    _check_splits(source, lengths, identity["held_out_fraction"])
    splits = {split: {"documents": len(lengths[split]), "tokens": sum(lengths[split])} for split in SPLITS}
    meta = {"dtype": dtype, "vocab_size": vocab_size, "eos_id": eos, "splits": splits, "fingerprint": identity}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _encoded(source: Source, tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    """(text, ids) of each document; prints a line every few seconds, and one at the end."""
    start = reported = time.monotonic()
    num_documents = num_tokens = 0
    for texts in _chunks(documents(source)):
        encoded = encode_documents(tokenizer, texts)
        num_documents += len(texts)
        num_tokens += sum(map(len, encoded)) + len(texts)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            _report(num_documents, num_tokens, reported - start)
        yield from zip(texts, encoded, strict=True)
    _report(num_documents, num_tokens, time.monotonic() - start)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _report(num_documents: int, num_tokens: int, seconds: float) -> None:
    rate = num_tokens / max(seconds, 1e-9)
    print(f"tokenize documents={num_documents} tokens={num_tokens} tokens_per_second={rate:.0f}", flush=True)


def _check_splits(source: Source, lengths: Mapping[str, array], fraction: float) -> None:
    if not lengths["train"]:
        raise ValueError(
            f"{source} has no document to train on: all {len(lengths['held_out'])} are held out "
            f"(held_out_fraction {fraction}); split the text into more documents (`separator`) or lower the fraction"
        )
    if fraction and not lengths["held_out"]:
        print(f"tokenize warning: none of the {len(lengths['train'])} documents of {source} is held out", flush=True)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenDocuments:
    """One split of an index, memory-mapped: tokens uint16 or uint32 [num_tokens], offsets int64 [documents + 1]."""

    folder: Path
    tokens: np.ndarray
    offsets: np.ndarray
    vocab_size: int
    eos_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def doc(self, i: int) -> np.ndarray:
        """The tokens of document i, its eos last."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]


def open_documents(index: str | Path, split: str) -> TokenDocuments:
    """A split ("train" or "held_out") of an index. Raises ValueError where the files do not fit meta.json."""
    meta = read_meta(index)
    folder = Path(index).expanduser() / split
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    path, dtype = folder / "tokens.bin", np.dtype(meta["dtype"])
    size, expected = path.stat().st_size, meta["splits"][split]["tokens"] * dtype.itemsize
    if size != expected or offsets[-1] * dtype.itemsize != expected:
        raise ValueError(f"{path} has {size} bytes; its meta.json says {expected}: the index is damaged, make it anew")
    tokens = np.memmap(path, dtype, mode="r") if size else np.zeros(0, dtype)  # an empty file cannot be mapped
    return TokenDocuments(folder, tokens, offsets, meta["vocab_size"], meta["eos_id"])


@dataclasses.dataclass(frozen=True, eq=False)
class PackPlan:
    """Which pieces of which documents make each row: row r holds pieces row_offsets[r] to row_offsets[r + 1].

    row_offsets int64 [rows + 1]; doc and start int64 [pieces]; length int32 [pieces].
    """

    sequence_length: int
    row_offsets: np.ndarray
    doc: np.ndarray
    start: np.ndarray
    length: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def padding(self) -> float:
        """The fraction of all places in rows that hold no token."""
        places = self.num_rows * self.sequence_length
        return 1 - self.length.sum(dtype=np.int64) / places if places else 0.0


def pack_plan(lengths: np.ndarray, sequence_length: int, seed: int) -> PackPlan:
    """Best-fit-decreasing packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling").

    A document of L tokens is cut into ceil(L / sequence_length) pieces, the fewest there can be, the last one short;
    one that fits a row is never cut. Each piece, longest first, goes where it leaves the least room. Rows and the
    pieces within them are in an order that the seed decides. O(n log n) in the number of pieces.
    """
    if sequence_length < 2:
        raise ValueError(f"sequence_length is {sequence_length}; a row needs 2 tokens to predict one from another")
    rng = np.random.default_rng(seed)
    doc, start, length = _cut(np.asarray(lengths, np.int64), sequence_length, rng)
    row = _best_fit_rows(length, sequence_length)
    num_rows = int(row.max(initial=-1)) + 1
    row = rng.permutation(num_rows)[row]
    order = np.argsort(row, kind="stable")  # within a row, pieces stay in the order of the shuffled documents
    row_offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=num_rows), dtype=np.int64)])
    return PackPlan(sequence_length, row_offsets, doc[order], start[order], length[order].astype(np.int32))


def _cut(lengths: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document, start, length) of each piece, documents in random order."""
    order = rng.permutation(len(lengths))
    pieces = -(-lengths[order] // size)
    doc = np.repeat(order, pieces)
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = (np.arange(len(doc)) - first) * size
    return doc, start, np.minimum(size, lengths[doc] - start)


def _best_fit_rows(length: np.ndarray, size: int) -> np.ndarray:
    """The row of each piece: the fullest row that still has room for it, longest pieces first."""
    row = np.arange(len(length))  # full pieces come first below, so they are rows 0, 1, …
    longest_first = np.argsort(-length, kind="stable")
    num_full = int((length == size).sum())
    row[longest_first[:num_full]] = np.arange(num_full)
    num_rows, rooms = num_full, []  # rooms: the sizes of room that some open row has, sorted
    open_rows: list[list[int]] = [[] for _ in range(size)]
    for piece, need in zip(longest_first[num_full:].tolist(), length[longest_first[num_full:]].tolist(), strict=True):
        at = bisect_left(rooms, need)
        if at == len(rooms):
            room, chosen, num_rows = size, num_rows, num_rows + 1
        else:
            room = rooms[at]
            chosen = open_rows[room].pop()
            if not open_rows[room]:
                del rooms[at]
        row[piece] = chosen
        if left := room - need:
            if not open_rows[left]:
                insort(rooms, left)
            open_rows[left].append(chosen)
    return row


def saved_plan(docs: TokenDocuments, sequence_length: int, seed: int) -> PackPlan:
    """The plan of a split, read from beside its tokens or made and kept there."""
    path = docs.folder / f"plan-T{sequence_length}-seed{seed}.npz"
    if path.is_file():
        with np.load(path) as arrays:
            return PackPlan(sequence_length, **arrays)
    plan = pack_plan(docs.lengths, sequence_length, seed)
    arrays = {key: value for key, value in vars(plan).items() if key != "sequence_length"}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.npz")
    with contextlib.suppress(OSError):  # a corpus may be read-only; the next start plans again
        try:
            np.savez(temporary, **arrays)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return plan


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of a split by random access, as grain sources are: each a dict of int32 [T] arrays.

    tokens; labels (the tokens, -100 on padding); segment_ids (1, 2, … a piece, 0 padding); positions (from 0 in each
    piece). Padding tokens are the eos.
    """

    documents: TokenDocuments
    plan: PackPlan

    @property
    def vocab_size(self) -> int:
        return self.documents.vocab_size

    def __len__(self) -> int:
        return self.plan.num_rows

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        plan, row, at = self.plan, self.padding_row(), 0
        for segment, piece in enumerate(range(plan.row_offsets[i], plan.row_offsets[i + 1]), start=1):
            begin, length = self.documents.offsets[plan.doc[piece]] + plan.start[piece], plan.length[piece]
            where = slice(at, at + length)
            row["tokens"][where] = row["labels"][where] = self.documents.tokens[begin : begin + length]
            row["segment_ids"][where] = segment
            row["positions"][where] = np.arange(length)
            at += length
        return row

    def padding_row(self) -> dict[str, np.ndarray]:
        """A row without any document."""
        values = {"tokens": self.documents.eos_id, "labels": IGNORED, "segment_ids": 0, "positions": 0}
        return {name: np.full(self.plan.sequence_length, value, np.int32) for name, value in values.items()}


def validate_batch(batch: Mapping[str, np.ndarray], *, vocab_size: int, max_position: int) -> None:
    """Raises ValueError on a batch of [B, T] integers that no model can train on, naming field, place and value."""
    fields = {name: np.asarray(batch[name]) for name in ("tokens", "labels", "segment_ids", "positions")}
    tokens = fields["tokens"]
    for name, values in fields.items():
        if values.shape != tokens.shape or values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                f"{name} is {values.dtype} {list(values.shape)}; expected integers [B, T] as tokens, {list(tokens.shape)}"
            )
    _require_all("tokens", tokens, (tokens >= 0) & (tokens < vocab_size), f"0 to {vocab_size - 1} (vocab_size)")
    labels, segments, positions = fields["labels"], fields["segment_ids"], fields["positions"]
    _require_all("labels", labels, (labels == tokens) | (labels == IGNORED), f"the token there, or {IGNORED}")
    _require_all("segment_ids", segments, segments >= 0, "0 (padding) or more")
    within = (positions >= 0) & (positions < max_position)
    _require_all("positions", positions, within, f"0 to {max_position - 1} (max_position)")


def _require_all(name: str, values: np.ndarray, good: np.ndarray, expected: str) -> None:
    if not good.all():
        row, column = np.argwhere(~good)[0].tolist()
        raise ValueError(f"{name}[{row}, {column}] is {values[row, column]}; expected {expected}")
