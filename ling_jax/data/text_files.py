"""Documents in text files: byte order marks, line ends, gzip, and checks of the format."""

import codecs
import contextlib
import gzip
import io
import mmap
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ling_jax.paths import is_remote

GZIP_MAGIC = b"\x1f\x8b"
OTHER_MARKS = {  # UTF-32 first: its little-endian mark begins as that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
OTHER_FORMATS = {  # their first bytes -> what to do with such a file
    b"version https://git-lfs.github.com/": "is a git-lfs pointer, not the file itself: fetch it with git lfs pull",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it with zstd -d",
    b"\xfd7zXZ\0": "is compressed with xz: unpack it with xz -d",
    b"BZh91AY&SY": "is compressed with bzip2: unpack it with bzip2 -d",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"PAR1\x15": "is a parquet file: read it with kind 'parquet'",
}
FORMAT_BYTES = 64  # at the start of a file, for `wrong_format`
ANY_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"


@contextlib.contextmanager
def open_decompressed(path: Path) -> Iterator[BinaryIO]:
    """Yields an open file of bytes, decompressed if it starts as gzip. Raises ValueError on damaged gzip."""
    try:
        with path.open("rb") as opened:
            file = io.BufferedReader(opened) if is_remote(path) else opened  # gcsfs's own reads lines of any length
            is_gzip = file.read(2) == GZIP_MAGIC
            file.seek(0)
            if not is_gzip:
                yield file
                return
            with gzip.GzipFile(fileobj=file) as plain:
                yield plain
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file: {error}; fetch it again or leave it out") from None


def wrong_format(start: bytes) -> str:
    """The format of a file that is neither UTF-8 nor gzip, by its first bytes, with advice; "" if it is unknown."""
    for first, what in OTHER_FORMATS.items():
        if start.startswith(first):
            return what
    for mark, name in OTHER_MARKS.items():
        if start.startswith(mark):
            return f"is {name}; expected UTF-8: convert it with iconv -f {name} -t UTF-8"
    return ""


def read_text_files(files: dict[str, Path], separator: str | None) -> Iterator[str]:
    """Documents of text files: one a file, or split by `separator`, in which a "\\n" stands for any line end.

    It skips files that are not UTF-8, and prints their number and that of files without the separator at the end.
    Files are memory-mapped, so memory does not depend on their size.
    """
    pattern = _separator_pattern(separator) if separator else None
    not_text, unsplit = _CountedFiles(), _CountedFiles()
    for path in files.values():
        with _mapped(path) as content:
            if reason := _why_not_text(content):
                not_text.add(f"{path} {reason}")
                continue
            if pattern and not pattern.search(content):
                unsplit.add(str(path))
            yield from _split(content, pattern)
    if files and not_text.count == len(files):
        raise ValueError(f"none of {len(files)} file(s) is UTF-8 text; {not_text.first}")
    if not_text.count:
        print(f"text: {not_text.count} of {len(files)} files are left out; the first {not_text.first}", flush=True)
    if unsplit.count:
        which = f"{unsplit.count} of {len(files)} files, the first {unsplit.first}"
        print(f"text: the separator {separator!r} does not occur in {which}; each is one document", flush=True)


def _split(content: mmap.mmap | bytes, separator: re.Pattern[bytes] | None) -> Iterator[str]:
    start = len(codecs.BOM_UTF8) if content[:3] == codecs.BOM_UTF8 else 0
    # In UTF-8 no character's bytes occur inside another's, so bytes are split where characters would be.
    # One search at a time: an iterator of matches would keep the mapping from being closed.
    while separator and (found := separator.search(content, start)):
        yield content[start : found.start()].decode()
        start = found.end()
    yield content[start:].decode()


class _CountedFiles:
    """The number of files with a remark, and the first of them."""

    def __init__(self):
        self.count, self.first = 0, ""

    def add(self, file: str) -> None:
        self.first = self.first or file
        self.count += 1


def _separator_pattern(separator: str) -> re.Pattern[bytes]:
    lines = separator.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return re.compile(ANY_LINE_END.join(re.escape(line.encode()) for line in lines))


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """Yields the mapped bytes of a file; a file in gzip or in a store is first copied to a temporary file."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_decompressed(path))
        if isinstance(file, gzip.GzipFile) or is_remote(path):
            unpacked = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, unpacked, 1 << 20)
            unpacked.flush()
            file = unpacked
        is_empty = not os.fstat(file.fileno()).st_size  # which cannot be mapped
        yield b"" if is_empty else stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _why_not_text(content: mmap.mmap | bytes) -> str:
    """Why bytes are no UTF-8 text without NUL; "" if they are."""
    if reason := wrong_format(content[:FORMAT_BYTES]):
        return reason
    if content.find(b"\0") >= 0:
        return "has NUL bytes: no text"
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(content), 1 << 20):
            decoder.decode(content[start : start + (1 << 20)])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return f"is not UTF-8: {error.reason} (byte 0x{error.object[error.start]:02x}); convert it with iconv"
    return ""
