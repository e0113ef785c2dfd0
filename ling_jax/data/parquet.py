"""Documents in parquet files: a column of strings, read in batches of rows."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ling_jax.data.text_files import FORMAT_BYTES, wrong_format
from ling_jax.messages import nearest
from ling_jax.paths import is_remote

BATCH_ROWS = 256  # in memory at a time; a row may be a long document


def import_pyarrow() -> ModuleType:
    """The module pyarrow with its parquet reader. Raises ValueError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        needed = "parquet files are read with pyarrow, which is not installed"
        raise ValueError(f"{needed}; run: pip install pyarrow") from None
    return pyarrow


def read_parquet(path: Path, column: str) -> Iterator[str]:
    """The strings of a column, in order.

    Raises ValueError that names the file on other formats and damage, the column if it is missing or of another type,
    and the row if it has no value.
    """
    pyarrow = import_pyarrow()
    try:
        with _opened(path) as source, pyarrow.parquet.ParquetFile(source) as file:
            _check_column(file.schema_arrow, column, path)
            for group in range(file.num_row_groups):
                rows = (row for batch in file.iter_batches(BATCH_ROWS, [group], [column]) for row in batch.column(0))
                for number, row in enumerate(rows):
                    yield _text(row, f"{path}, row group {group}, row {number}: column {column!r}")
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the format
            raise
        found = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} {_other_format(path) or f'is no parquet file, or damaged: {found}'}") from None


def _opened(path: Path) -> contextlib.AbstractContextManager:
    """The source from which pyarrow reads a file: its path, or the open object of a store."""
    return path.open("rb") if is_remote(path) else contextlib.nullcontext(path)


def _other_format(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(FORMAT_BYTES)
    return "" if start.startswith(b"PAR1") else wrong_format(start)


def _check_column(schema, column: str, path: Path) -> None:
    names = schema.names
    if names.count(column) > 1:
        raise ValueError(f"{path} has {names.count(column)} columns {column!r}; expected one: rename the others")
    if column not in names:
        found = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") or "none"
        raise ValueError(f"{path} has no column {column!r}{nearest(column, names)}; found {found}")
    kind = schema.field(column).type
    if str(kind).startswith("dictionary<"):  # lists have a value_type, too
        kind = kind.value_type
    if str(kind) not in ("string", "large_string", "string_view"):
        raise ValueError(f"{path}: column {column!r} is {schema.field(column).type}; expected strings")


def _text(value, where: str) -> str:
    """The text of a scalar in a column of strings."""
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error.reason}") from None
    if text is None:
        raise ValueError(f"{where} is null; expected a string: leave such rows out, or make them empty")
    return text
