"""Parquet files as documents: a column of strings, read a batch of rows at a time."""

from collections.abc import Iterator
from pathlib import Path

from ling_jax.config import nearest
from ling_jax.data.json_lines import shown

BATCH_ROWS = 256  # held at once; a row may be a long document


def import_parquet():
    """pyarrow.parquet; ValueError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        needed = "parquet files are read with pyarrow, which is not installed"
        raise ValueError(f"{needed}; run: pip install 'ling-jax[data]'") from None
    return pyarrow.parquet


def read_parquet(path: Path, column: str) -> Iterator[str]:
    """The strings of a column, in order.

    Raises ValueError on a file that is no parquet or damaged, a missing column, another type, and a row without a
    value, each by name.
    """
    parquet = import_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            _check_column(file.schema_arrow, column, path)
            for group in range(file.num_row_groups):
                row = 0
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[column]):
                    for text in batch.column(0):
                        yield _text(text.as_py(), f"{path}, row group {group}, row {row}: column {column!r}")
                        row += 1
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, row group {group}, row {row}: column {column!r} is not UTF-8: {error.reason}"
        ) from None
    except (parquet.lib.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of the format
            raise
        found = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is no parquet file, or damaged: {found}") from None


def _check_column(schema, column: str, path: Path) -> None:
    names = schema.names
    if column not in names:
        found = ", ".join(names[:20]) or "none"
        raise ValueError(f"{path} has no column {column!r}{nearest(column, names)}; found {found}")
    kind = schema.field(column).type
    kind = getattr(kind, "value_type", kind)  # of a dictionary
    if str(kind) not in ("string", "large_string", "string_view"):
        raise ValueError(f"{path}: column {column!r} is {schema.field(column).type}; expected strings")


def _text(value, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is {'null' if value is None else shown(value)}; expected a string")
    return value
