"""The held-out split of small data by position, for documents that a hash puts all on one side."""

import itertools
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SPLITS = ("train", "held_out")
MIN_PART = 2  # tokens: a single one predicts nothing
Span = tuple[int, int]


def split_by_position(
    folder: Path, lengths: dict[str, array], hashes: Sequence[int], dtype: np.dtype, fraction: float
) -> str:
    """Splits documents that are all on one side, in their files and in `lengths`; returns what is held out, or "".

    It holds out the last document and all with the same hash. If all documents have one hash, they are the same text:
    then it holds out the last `fraction` of it, and the part before ends without eos. Conversations (they have a
    trained.bin) and texts of less than 4 tokens are not cut; they are all trained on.
    """
    full = SPLITS[0] if lengths[SPLITS[0]] else SPLITS[1]
    ends = np.cumsum([0, *lengths[full]]).tolist()
    documents = list(itertools.pairwise(ends))
    held_out = [value == hashes[-1] for value in hashes]
    cuttable = not (folder / full / "trained.bin").exists()
    if not all(held_out):
        train = [span for span, held in zip(documents, held_out, strict=True) if not held]
        parts = train, [span for span, held in zip(documents, held_out, strict=True) if held]
        what = f"the last one and its like, {sum(held_out)} of {len(documents)}"
    else:
        parts = _cut(documents, fraction) if cuttable else (documents, [])
        what = f"the last part of the text, {fraction:.3g} of it"
    _write(folder, full, dict(zip(SPLITS, parts, strict=True)), dtype)
    for split, spans in zip(SPLITS, parts, strict=True):
        lengths[split] = array("q", [stop - start for start, stop in spans])
    return f"{what} ({sum(lengths[SPLITS[1]])} tokens)" if parts[1] else ""


def _cut(documents: list[Span], fraction: float) -> tuple[list[Span], list[Span]]:
    """(all copies of a document without their last part, that part once)."""
    length = documents[0][1] - documents[0][0]
    size = max(MIN_PART, round(fraction * length))
    if length - size < MIN_PART:
        return documents, []
    return [(start, stop - size) for start, stop in documents], [(documents[0][1] - size, documents[0][1])]


def _write(folder: Path, full: str, parts: dict[str, list[Span]], dtype: np.dtype) -> None:
    for name, kind in (("tokens.bin", dtype), ("trained.bin", np.dtype(bool))):
        path = folder / full / name
        if not path.exists():
            continue
        whole = path.rename(path.with_name(f"{name}.whole"))
        values = np.memmap(whole, kind, "r")
        for split, spans in parts.items():
            with (folder / split / name).open("wb") as file:
                for start, stop in spans:
                    file.write(values[start:stop].tobytes())
        whole.unlink()
