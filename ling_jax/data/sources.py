"""Sources of documents: text, JSON lines, parquet, token files, and the standard library of this Python."""

import ast
import dataclasses
import glob
import hashlib
import itertools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from etils import epath

from ling_jax.data.json_lines import check_whole_characters, field, read_objects
from ling_jax.data.parquet import import_pyarrow, read_parquet
from ling_jax.data.text_files import read_text_files
from ling_jax.files import read_object
from ling_jax.messages import nearest, shown
from ling_jax.paths import as_path, file_size, files_below, is_remote, matching_objects
from ling_jax.sums import local_copy


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """UTF-8 text, gzipped or not: a file, a folder (all files below it) or a glob.

    Each file is a document, or several that `separator` splits; "\\n" in it matches any line end (\\n, \\r\\n or \\r).
    Line ends inside documents are kept; a byte order mark is dropped. Folders and globs skip hidden files. Files that
    are not UTF-8 text are skipped, and a printed line counts them.
    """

    path: str
    separator: str | None = None


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """A JSON object on each line, with the document in `field`: a file, a folder (all JSON_LINES below it) or a glob.

    Files may be gzipped. Other fields are not used, so ids may repeat.
    """

    path: str
    field: str = "text"


@dataclasses.dataclass(frozen=True)
class ParquetFiles:
    """A column of strings, with a document in each row: a file, a folder (all *.parquet below it) or a glob."""

    path: str
    field: str = "text"


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """Tokenised documents: a folder with tokens.bin, offsets.npy and meta.json (see `open_documents`)."""

    path: str


@dataclasses.dataclass(frozen=True)
class PythonSources:
    """The standard library of the running Python, 12 MB, with a module as a document (licence: PSF-2.0)."""


@dataclasses.dataclass(frozen=True)
class PythonDocstrings:
    """The docstrings of the same modules; those of a module are a document (licence: PSF-2.0)."""


Source = TextFiles | JsonLines | ParquetFiles | TokenFile | PythonSources | PythonDocstrings

KINDS = {
    "text": TextFiles, "jsonl": JsonLines, "parquet": ParquetFiles, "tokens": TokenFile, "python": PythonSources,
    "docstrings": PythonDocstrings,
}  # fmt: skip
JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json.gz")  # suffixes of such files in a folder
OPTIONS = {"path": "", "field": "text", "separator": ""}  # key -> the value that means "not given"
TOKEN_FILES = ("meta.json", "offsets.npy", "tokens.bin")
STDLIB_EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def source_from_config(config: dict) -> Source:
    """A source from {"kind", "path", "field", "separator"}; the last three where the kind has them.

    Raises ValueError on an unknown kind or key (with the nearest name), on an option that the kind does not have, and
    on a missing path.
    """
    for key in config:
        if key not in ("kind", *OPTIONS):
            raise ValueError(f"source key {key!r} is unknown{nearest(key, OPTIONS)}; known: kind, {', '.join(OPTIONS)}")
    kind = config.get("kind")
    if kind not in KINDS:
        raise ValueError(f"source kind {kind!r} is unknown{nearest(str(kind), KINDS)}; known: {', '.join(KINDS)}")
    given = {key: config[key] for key, unset in OPTIONS.items() if config.get(key) not in (None, unset)}
    fields = [field.name for field in dataclasses.fields(KINDS[kind])]
    if unused := [key for key in given if key not in fields]:
        raise ValueError(f"a source of kind {kind!r} has no {unused[0]}; remove {unused[0]}={given[unused[0]]!r}")
    if "path" in fields and "path" not in given:
        raise ValueError(f"a source of kind {kind!r} needs a path; got {config}")
    if kind == "parquet":
        import_pyarrow()  # raises before any work where it is missing
    return KINDS[kind](**given)


def kind_of(path: str) -> str:
    """The kind of source of a path, from the names of its files: "tokens", "parquet", "jsonl" or "text".

    Raises FileNotFoundError or ValueError where there are no files, or both parquet files and JSON lines.
    """
    files = _find(path, "")
    if files.keys() >= set(TOKEN_FILES):
        return "tokens"
    endings = {"parquet": ".parquet", "jsonl": JSON_LINES}
    found = [kind for kind, ends in endings.items() if any(name.lower().endswith(ends) for name in files)]
    if len(found) > 1:
        raise ValueError(f"{path} holds parquet files and JSON lines; name a source for each in the config")
    return found[0] if found else "text"


def documents(source: Source) -> Iterator[str]:
    """The documents of a source in a fixed order, without blank ones.

    Raises FileNotFoundError on a missing path and ValueError on an empty corpus.
    """
    files = source_files(source)
    match source:
        case TextFiles():
            texts = read_text_files(files, source.separator)
        case JsonLines():
            texts = _json_texts(files, source.field)
        case ParquetFiles():
            texts = itertools.chain.from_iterable(read_parquet(path, source.field) for path in files.values())
        case PythonSources():
            texts = read_text_files(files, None)
        case PythonDocstrings():
            texts = map(_docstrings, read_text_files(files, None))
        case TokenFile():
            raise ValueError(f"{source.path} is already tokenised, it has no text; name its tokenizer")
    return _not_blank(texts, source, len(files))


def source_files(source: Source) -> dict[str, Path]:
    """{name relative to the source's root: file} of the files that a source reads, sorted by name."""
    match source:
        case TextFiles():
            return _find(source.path, "")
        case JsonLines():
            return _find(source.path, *JSON_LINES)
        case ParquetFiles():
            return _find(source.path, ".parquet")
        case TokenFile():
            return _token_files(as_path(source.path))
        case PythonSources() | PythonDocstrings():
            return _stdlib_files()


def source_digest(source: Source) -> str:
    """Hex digest of a source: its options, and names, sizes and first 64 KiB of its files.

    It does not depend on the place of the files, and misses edits after 64 KiB that keep the size.
    """
    anywhere = dataclasses.replace(source, path="") if hasattr(source, "path") else source
    digest = hashlib.blake2b(repr(anywhere).encode(), digest_size=16)
    for name, path in source_files(source).items():
        with path.open("rb") as file:
            head = hashlib.blake2b(file.read(1 << 16), digest_size=16).hexdigest()
        digest.update(repr((name, file_size(path), head)).encode())
    return digest.hexdigest()


def is_held_out(document: str | bytes | int, fraction: float) -> bool:
    """Whether a document (or its `split_hash`) is in the held-out split, which holds `fraction` of all documents.

    It is a pure function of the bytes, so identical documents are on the same side in any source and order.
    """
    hashed = document if isinstance(document, int) else split_hash(document)
    return hashed < fraction * 2**64


def training_documents(source: Source, fraction: float) -> Iterator[str]:
    """The documents of a source that are not held out; all of them where every one would be held out."""
    held_out = []
    for text in documents(source):
        if not is_held_out(text, fraction):
            held_out = None
            yield text
        elif held_out is not None:  # until a document is trained on
            held_out.append(text)
    yield from held_out or ()


def split_hash(document: str | bytes) -> int:
    """A hash of the bytes of a document, 0 to 2**64 - 1."""
    digest, size = hashlib.blake2b(digest_size=8), 1 << 20
    for start in range(0, len(document), size):  # in pieces: a long text is not copied as a whole
        part = document[start : start + size]
        digest.update(part.encode() if isinstance(part, str) else part)
    return int.from_bytes(digest.digest(), "big")


@dataclasses.dataclass(frozen=True, eq=False)
class TokenDocuments:
    """Tokenised documents, memory-mapped: document i is tokens[offsets[i] : offsets[i + 1]]."""

    folder: Path
    tokens: np.ndarray  # [num_tokens] uint16 or uint32
    offsets: np.ndarray  # [documents + 1] int64
    vocab_size: int
    eos_id: int
    tokenizer: str  # digest of the tokenizer; "" if unknown
    trained: np.ndarray | None = None  # [num_tokens] bool: whether each token is trained on; None: all

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def doc(self, i: int) -> np.ndarray:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def open_documents(folder: str | Path) -> TokenDocuments:
    """The documents of a token folder, such as <folder of `tokenize`>/train; one in a store is copied to this machine.

    The folder holds tokens.bin (ids, little-endian), offsets.npy (int64, the start of each document, and the end) and
    meta.json ({"dtype": "uint16" or "uint32", "vocab_size", "eos_id"}, and the digest "tokenizer" if known). It also
    holds trained.bin (a byte for each token, 1 if it is trained on) unless all tokens are. Raises FileNotFoundError on
    a missing file and ValueError where the files contradict each other.
    """
    folder = as_path(folder)
    _token_files(folder)  # raises where one is missing
    folder = local_copy(folder)
    meta = _read_meta(folder / "meta.json")
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    path, offsets = folder / "tokens.bin", _read_offsets(folder / "offsets.npy")
    if path.stat().st_size != offsets[-1] * dtype.itemsize:
        found = f"{path} has {path.stat().st_size} bytes"
        raise ValueError(f"{found}; offsets.npy says {offsets[-1]} tokens of {dtype.itemsize} bytes each")
    # An empty file cannot be mapped; asarray, since slices of a memmap object are slow.
    tokens = np.asarray(np.memmap(path, dtype, "r")) if offsets[-1] else np.zeros(0, dtype)
    trained = _open_trained(folder / "trained.bin", len(tokens))
    return TokenDocuments(
        folder, tokens, offsets, meta["vocab_size"], meta["eos_id"], meta.get("tokenizer", ""), trained
    )


def _read_meta(path: Path) -> dict:
    meta = read_object(path)
    if not all(type(meta.get(key)) is int for key in ("vocab_size", "eos_id")) or meta.get("dtype") not in (
        "uint16",
        "uint32",
    ):
        raise ValueError(f"{path} is {shown(meta)}; expected vocab_size, eos_id, and dtype uint16 or uint32")
    return meta


def _read_offsets(path: Path) -> np.ndarray:
    """int64 [documents + 1]."""
    try:
        offsets = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array of numpy: {error}; make the token folder again") from None
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        raise ValueError(f"{path} is {offsets.dtype}{list(offsets.shape)}; expected int64 [documents + 1]")
    offsets = np.asarray(offsets, np.int64)
    if offsets[0] or (np.diff(offsets) < 0).any():
        raise ValueError(f"{path} does not start at 0 or decreases; expected where each document starts, and the end")
    return offsets


def _open_trained(path: Path, num_tokens: int) -> np.ndarray | None:
    if not path.exists():
        return None
    if path.stat().st_size != num_tokens:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; expected one for each of {num_tokens} tokens")
    return np.asarray(np.memmap(path, bool, "r")) if num_tokens else np.zeros(0, bool)


def _find(path: str, *endings: str) -> dict[str, Path]:
    """{relative name: file} of a path: a file, a folder of files with these endings, or a glob, without hidden files.

    Links are followed. Raises FileNotFoundError on a missing path or a broken link, and ValueError without files.
    """
    where = as_path(path)
    if is_remote(where):
        return _find_remote(where, *endings)
    if where.is_file():
        return {where.name: where}
    if where.is_dir():
        root, found = where, (file for file in _below(where) if file.name.lower().endswith(endings))
    elif glob.has_magic(str(where)):
        # An existing folder may have brackets in its name, which are then no pattern.
        root = next(parent for parent in where.parents if parent.is_dir() or not glob.has_magic(str(parent)))
        pattern = str(where.relative_to(root))
        found = (root / name for name in glob.glob(pattern, root_dir=root, recursive=True))
    else:
        raise FileNotFoundError(f"{where} does not exist; name a file, a folder or a glob such as 'data/*.txt'")
    named = {file.relative_to(root).as_posix(): file for file in found}
    files = {}
    for name in sorted(named):
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if named[name].is_symlink() and not named[name].exists():
            raise FileNotFoundError(
                f"{named[name]} is a link to a file that does not exist; fetch it or remove the link"
            )
        if named[name].is_file():
            files[name] = named[name]
    return _not_empty(files, where, *endings)


def _not_empty(files: dict[str, Path], where: Path, *endings: str) -> dict[str, Path]:
    if not files:
        wanted = f"no file found that ends in {' or '.join(endings)}" if any(endings) else "no file found"
        raise ValueError(f"{where} is an empty corpus: {wanted}; name another path")
    return files


def _find_remote(where: epath.Path, *endings: str) -> dict[str, epath.Path]:
    """`_find` in a store, which has no links."""
    if where.is_file():
        return {where.name: where}
    if where.is_dir():
        root, names = where, [name for name in files_below(where) if name.lower().endswith(endings)]
    elif glob.has_magic(str(where)):
        root = next(parent for parent in where.parents if not glob.has_magic(str(parent)))
        names = [path.removeprefix(f"{root}/") for path in matching_objects(where)]
    else:
        raise FileNotFoundError(f"{where} does not exist; name a file, a folder or a glob such as 'gs://data/*.txt'")
    shown_names = (name for name in sorted(names) if not any(part.startswith(".") for part in name.split("/")))
    return _not_empty({name: root / name for name in shown_names}, where, *endings)


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links to folders too; a folder that contains itself is entered once."""
    entered = {}
    for parent, names, files in os.walk(folder, followlinks=True):
        entered[parent] = entered.get(os.path.dirname(parent), frozenset()) | {os.path.realpath(parent)}
        names[:] = [name for name in names if os.path.realpath(os.path.join(parent, name)) not in entered[parent]]
        yield from (Path(parent, name) for name in files)


def _token_files(folder: Path) -> dict[str, Path]:
    for name in TOKEN_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist; a token folder holds {', '.join(TOKEN_FILES)}")
    return {name: folder / name for name in TOKEN_FILES}


def _stdlib_files() -> dict[str, Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted((file.relative_to(root).as_posix(), file) for file in root.rglob("*.py"))
    return {name: file for name, file in files if not STDLIB_EXCLUDED.intersection(name.split("/"))}


def _json_texts(files: dict[str, Path], name: str) -> Iterator[str]:
    for path in files.values():
        for where, record in read_objects(path, f"an object with a field {name!r}"):
            text = field(record, name, where)
            if not isinstance(text, str):
                found = "null" if text is None else type(text).__name__
                raise ValueError(f"{where}: field {name!r} is {found}; expected a string")
            check_whole_characters(text, f"{where}: field {name!r}")
            yield text


def _docstrings(text: str) -> str:
    """All docstrings of a module in the order of the source, a blank line between them."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented) and ast.get_docstring(node)]
    nodes.sort(key=lambda node: node.body[0].lineno)
    return "\n\n".join(ast.get_docstring(node) for node in nodes)


def _not_blank(texts: Iterator[str], source: Source, num_files: int) -> Iterator[str]:
    empty = True
    for text in texts:
        if text.strip():
            empty = False
            yield text
    if empty:
        found = f"{num_files} file(s), but no document that is UTF-8 text and not blank"
        raise ValueError(f"{source} is an empty corpus: {found}; name a path with text in it")
