"""Perplexity of texts: nats per token and per byte."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ling_jax.data import JsonLines, ParquetFiles, Source, TextFiles, documents, encode_documents, eos_id, source_files
from ling_jax.data.sources import JSON_LINES
from ling_jax.evaluate.report import Metric
from ling_jax.evaluate.statistics import bootstrap_ratio_interval


class Document(NamedTuple):
    """An encoded text."""

    tokens: np.ndarray  # [length] int32: the text, then end of text
    num_bytes: int  # bytes of the text after its first token, which are predicted


class Window(NamedTuple):
    """A part of a document that is scored in one row."""

    document: int
    start: int
    tokens: np.ndarray


def read_texts(path: str | Path) -> list[str]:
    """The documents at a path: a file, a folder or a glob.

    File names decide the format: JSON lines (*.jsonl or *.ndjson, gzipped or not) or parquet with a field `text`,
    otherwise plain text. Raises ValueError or FileNotFoundError with file, line and field.
    """
    return list(documents(_source(str(path))))


def _source(path: str) -> Source:
    names = list(source_files(TextFiles(path)))
    kinds = [_kind(name) for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if kind is not kinds[0]:
            mixed = f"{names[0]} ({kinds[0].__name__}) and {name} ({kind.__name__})"
            raise ValueError(f"{path} has files of two kinds, {mixed}; name those of one, as by a glob")
    return kinds[0](path)


def _kind(name: str) -> type[Source]:
    if name.lower().endswith(JSON_LINES):
        return JsonLines
    return ParquetFiles if name.lower().endswith(".parquet") else TextFiles


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Document]:
    """Each text as in training: its tokens, then end of text."""
    end = eos_id(tokenizer)
    return [
        Document(np.append(ids, end).astype(np.int32), len(text.encode()) - _num_bytes(tokenizer, ids[0]))
        for text, ids in zip(texts, encode_documents(tokenizer, texts), strict=True)
    ]


def _num_bytes(tokenizer: Tokenizer, token: int) -> int:
    """Bytes of a token: byte-level BPE writes one letter per byte."""
    return len(tokenizer.id_to_token(int(token)))


def windows(documents: Sequence[Document], size: int) -> Iterator[Window]:
    """Cuts each document into windows of at most `size` tokens that predict each token but its first exactly once.

    A window starts with the last token of the one before as context only; no other token is read twice (the stride is
    size - 1). The first tokens of a later window have little context, so the result is an upper bound on the loss with
    a longer context.
    """
    for number, (tokens, _) in enumerate(documents):
        for start in range(0, len(tokens) - 1, size - 1):
            yield Window(number, start, tokens[start : start + size])


def perplexity_results(
    documents: Sequence[Document], windows: Sequence[Window], logps: Mapping[int, np.ndarray]
) -> tuple[list[dict], list[Metric]]:
    """(a sample for each document, metrics) from the log-probabilities [length - 1] of each window.

    Nats per token count all tokens except the first of each document, end of text included. Nats per byte divide the
    same sum by the bytes after the first token. Intervals resample documents, because their tokens are not independent.
    """
    parts: list[list[np.ndarray]] = [[] for _ in documents]
    for i, window in enumerate(windows):
        parts[window.document].append(logps[i])
    by_document = [np.concatenate(part) for part in parts]
    nats = np.array([-part.sum(dtype=np.float64) for part in by_document])
    counts, num_bytes = (np.array(x) for x in ([len(part) for part in by_document], [d.num_bytes for d in documents]))
    samples = [
        {
            "id": number,
            "tokens": document.tokens.tolist(),
            "logps": by_document[number].tolist(),
            "nats": float(nats[number]),
            "predicted_tokens": int(counts[number]),
            "predicted_bytes": document.num_bytes,
        }
        for number, document in enumerate(documents)
    ]
    return samples, [*_token_metrics(nats, counts), _ratio("nats_per_byte", nats, num_bytes)]


def _token_metrics(nats, counts) -> tuple[Metric, Metric]:
    per_token = _ratio("nats_per_token", nats, counts)
    with np.errstate(over="ignore"):
        interval = per_token.interval and tuple(map(float, np.exp(per_token.interval)))
        return per_token, per_token._replace(name="perplexity", value=float(np.exp(per_token.value)), interval=interval)


def _ratio(name: str, above, below) -> Metric:
    """The ratio of sums; without a value if the denominator is 0, as for texts of one token."""
    count = len(below)
    if not below.sum():
        return Metric(name, None, None, count, "documents")
    value, interval = float(above.sum() / below.sum()), bootstrap_ratio_interval(above, below)
    return Metric(name, value, interval, count, "documents")
