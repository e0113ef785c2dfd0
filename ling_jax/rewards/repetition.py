"""A repetition penalty from the compression ratio of a text."""

import zlib

ORDINARY_RATIO = 0.25  # our choice
MIN_BYTES = 512  # our choice: zlib's header and window dominate the ratio of shorter texts


def compression_ratio(text: str) -> float:
    """Bytes of zlib (level 6) output per UTF-8 byte. Raises ValueError on the empty text."""
    data = _utf8(text)
    if not data:
        raise ValueError("the text is empty; expected at least one byte to compress")
    return len(zlib.compress(data, 6)) / len(data)


def repetition_reward(text: str) -> float:
    """-min(1, max(0, (0.25 - c) / 0.25)) of the compression ratio c; 0 for a text below 512 bytes.

    The result is in [-1, 0]. Ling 2.6 report §3.1.2 penalises compressible text; the form is our choice.
    """
    if len(_utf8(text)) < MIN_BYTES:
        return 0.0
    return -min(1.0, max(0.0, (ORDINARY_RATIO - compression_ratio(text)) / ORDINARY_RATIO))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
