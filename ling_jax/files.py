"""Files and folders that appear whole or not at all, and JSON whose errors name the file."""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from ling_jax import partials
from ling_jax.paths import as_path, file_size, files_below, is_new, is_remote, upload

MAX_JSON_BYTES = 2**28  # our choice: the index of a model of 1T parameters has about 2**24
LFS_POINTER = b"version https://git-lfs"  # the first bytes of a Git LFS pointer
LFS_ADVICE = "a Git LFS pointer, which stands for the file; run `git lfs pull` in its folder"


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[BinaryIO]:
    """Yields a file to write; it gets its name at the end of the block, and is removed if the block fails.

    A file of a store is written to the local disk and uploaded at the end. Raises OSError.
    """
    path = as_path(path)
    if is_remote(path):
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            upload(Path(file.name), path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with partials.write_errors(path), partials.claimed(path, Path.touch) as partial:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)


def write_json(value: Any, path: epath.PathLike) -> None:
    """Writes a file with one JSON value, indented. Raises OSError."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def write_json_lines(values: Iterable[Any], path: epath.PathLike) -> None:
    """Writes a file with a JSON value a line. Raises OSError."""
    with replacing(path) as file:
        file.writelines(json.dumps(value).encode() + b"\n" for value in values)


def read_object(path: epath.PathLike, expected: str = "an object", most: float | None = None) -> dict[str, Any]:
    """The JSON object of a file.

    Raises OSError, and ValueError where it holds no JSON object or more than `most`
    bytes, which are `MAX_JSON_BYTES` if not given.
    """
    path = as_path(path)
    size = file_size(path)
    most = MAX_JSON_BYTES if most is None else most
    if size > most:
        raise ValueError(f"{path} has {size} bytes; JSON of at most {most} bytes is read")
    return parse_object(path.read_bytes(), str(path), expected)


def parse_object(text: str | bytes, where: str, expected: str = "an object") -> dict[str, Any]:
    """The JSON object of a text. Raises ValueError, which names `where` it stands and what is `expected`."""
    value = parse_json(text, where, expected)
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a JSON {type(value).__name__}; expected {expected}")
    return value


def parse_json(text: str | bytes, where: str, expected: str = "JSON") -> Any:
    """The JSON value of a text; any fault of the text is a ValueError that names `where` it stands.

    A key that stands twice in an object with two values is a fault too, because readers differ in the one they take.
    """
    start = text[: len(LFS_POINTER)]
    if (start.encode(errors="replace") if isinstance(start, str) else start) == LFS_POINTER:
        raise ValueError(f"{where} is {LFS_ADVICE}")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, brackets nested by the thousand
        raise ValueError(f"{where} is not JSON: {error}; expected {expected}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"{key!r:.200} stands twice, as {value!r:.80} and as {found[key]!r:.80}")
    return found


def remove_folder(path: epath.PathLike, root: epath.PathLike) -> None:
    """Removes a folder below `root` and its content. Raises ValueError where a link leads out of `root`."""
    if not is_remote(root) and not (there := Path(path).resolve()).is_relative_to(Path(root).resolve()):
        raise ValueError(f"{path} is to be replaced and lies outside of {root}, in {there}; remove the link")
    epath.Path(path).rmtree()


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[Path]:
    """Yields a local folder to fill; it gets its name at the end of the block, and is removed if the block fails.

    Missing parents are made, and removed with it; links are followed. Raises OSError at the end if something other than
    an empty folder has the name. A folder of a store gets the files at the end, in the order in which they were
    written, so that an index comes after the files that it names.
    """
    path = as_path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            if not is_new(path):
                raise FileExistsError(f"{path} exists; name a new folder")
            upload_folder(Path(folder), path)
        return
    path = path.resolve()
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partials.write_errors(path), partials.claimed(path, Path.mkdir) as partial:
            yield partial
            partial.rename(path)
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # it holds the new folder, or was not made
                parent.rmdir()


def upload_folder(folder: Path, target: epath.PathLike) -> None:
    """Copies the files below a local folder into a store, in the order in which they were written. Raises OSError."""
    for name in sorted(files_below(folder), key=lambda name: (folder / name).stat().st_mtime_ns):
        upload(folder / name, epath.Path(target) / name)
