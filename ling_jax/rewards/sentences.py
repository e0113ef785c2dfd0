"""Sentences of a tokenized text, the unit of LPO ratios and of the redundancy penalty."""

import bisect
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

MARKS = ".!?;。！？；\n"  # our choice: Ling 2.0 report §4.2.2 says "common pause punctuation"
RUN = re.compile(rf"[{MARKS}](?:[ \t\r]*[{MARKS}])*")
DECIMAL_POINT = re.compile(r"(?<=[0-9])\.(?=[0-9])")
OPENER = re.compile(r"^ {0,3}```|\\begin\{[^{}]*\}|\\\[|\\\(|(?<!\\)\$\$|(?<!\\)\$(?=\S)", re.MULTILINE)
FENCE_END = re.compile(r"^[ \t]*```[^\n]*", re.MULTILINE)
DOLLAR_END = re.compile(r"(?<=[^\s\\])\$(?!\d)")
BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
CLOSERS = {"\\[": "\\]", "\\(": "\\)", "$$": "$$"}


class Sentences(NamedTuple):
    """The result of `split_sentences`."""

    ids: list[int]  # sentence number of each token
    pieces: list[str]  # text of each piece


def split_sentences(tokens: Sequence[bytes], special: Sequence[bool] | None = None) -> Sentences:
    """The sentence number of each token, and the pieces of the text; `tokens` are given as bytes.

    Ling 2.0 report §4.2.2 cuts the text, not the tokens; the rule is our choice. A token belongs to the sentence of its
    last byte; all bytes of a character belong together. Special tokens carry no text. They and empty tokens join the
    token before them, so an end token joins the last sentence. Ids count 0, 1, 2, … in order of appearance; a sentence
    that ends inside a token has no id. `pieces` are those of `cut_sentences`, with U+FFFD for invalid UTF-8. Raises
    ValueError if `special` has another length than `tokens`.
    """
    special = [False] * len(tokens) if special is None else special
    if len(special) != len(tokens):
        raise ValueError(f"special has {len(special)} entries for {len(tokens)} tokens; expected one each")
    sizes = [0 if skip else len(token) for token, skip in zip(tokens, special, strict=True)]
    data = b"".join(token for token, size in zip(tokens, sizes, strict=True) if size)
    # Invalid bytes keep their position: each becomes one surrogate and then a byte again.
    pieces = [_bytes(piece) for piece in cut_sentences(data.decode("utf-8", "surrogateescape"))]
    piece_ends = list(itertools.accumulate(map(len, pieces)))
    token_ends = itertools.accumulate(sizes)
    ids: list[int] = []
    last = 0
    for size, end in zip(sizes, token_ends, strict=True):
        last = bisect.bisect_left(piece_ends, end) if size else last
        ids.append(last)
    number = {sentence: i for i, sentence in enumerate(dict.fromkeys(ids))}
    return Sentences([number[sentence] for sentence in ids], [piece.decode("utf-8", "replace") for piece in pieces])


def cut_sentences(text: str) -> list[str]:
    """The text cut after each run of `. ! ? ; 。 ！ ？ ；` and newlines, blanks between them included.

    A `.` between two digits does not cut, and neither does a mark in a fenced block or LaTeX (`literal_spans`). The
    text after the last mark is a piece. The empty text is one empty piece. The pieces joined are the text.
    """
    masked = list(DECIMAL_POINT.sub("0", text))
    for start, end in literal_spans(text):
        masked[start:end] = "0" * (end - start)
    cuts = [match.end() for match in RUN.finditer("".join(masked))]
    if not cuts or cuts[-1] < len(text):
        cuts.append(len(text))
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts])]


def literal_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of fenced blocks and LaTeX: `$$…$$`, `\\[…\\]`, `\\(…\\)`, `\\begin{x}…\\end{x}`, `$…$`.

    The earliest opener wins. A fence starts with a line of ``` (after at most 3 spaces) and ends with the next line of
    ``` (after any blanks), or with the text. Any other opener without a closer is plain text. `$…$` has no blank at
    either end, no digit after it (`$5 and $6` is money) and no blank line inside; `\\$` neither opens nor closes.
    """
    dollar_ends = [match.start() for match in DOLLAR_END.finditer(text)]
    blank_lines = [match.start() for match in BLANK_LINE.finditer(text)]
    absent: set[str] = set()  # closers that do not occur again; each is searched once, so the time stays linear
    spans, at = [], 0
    while match := OPENER.search(text, at):
        opener = match[0]
        if opener.endswith("```"):
            end = _fence_end(text, match.end())
        elif opener == "$":
            end = _dollar_end(match.end(), dollar_ends, blank_lines)
        else:
            end = _end_of(text, CLOSERS.get(opener) or opener.replace("begin", "end", 1), match.end(), absent)
        at = end or match.end()
        if end:
            spans.append((match.start(), end))
    return spans


def _fence_end(text: str, start: int) -> int:
    line_end = text.find("\n", start)
    closing = FENCE_END.search(text, line_end + 1) if line_end >= 0 else None
    return closing.end() if closing else len(text)


def _dollar_end(start: int, dollar_ends: list[int], blank_lines: list[int]) -> int | None:
    i, j = bisect.bisect_right(dollar_ends, start), bisect.bisect_left(blank_lines, start)
    if i == len(dollar_ends) or (j < len(blank_lines) and blank_lines[j] < dollar_ends[i]):
        return None
    return dollar_ends[i] + 1


def _end_of(text: str, closer: str, start: int, absent: set[str]) -> int | None:
    found = -1 if closer in absent else text.find(closer, start)
    if found < 0:
        absent.add(closer)
        return None
    return found + len(closer)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
