"""Which file of a Hugging Face folder holds which tensor: its index decides, and headers where there is no good one."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ling_jax.checkpoint.names import IGNORED, canonical
from ling_jax.checkpoint.safetensors_file import SafetensorsFile
from ling_jax.files import read_object

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
OTHER_WEIGHTS = (".gguf", ".ggml", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".npz")


class Location(NamedTuple):
    place: dict[str, tuple[SafetensorsFile, str]]  # canonical name -> file, name in the file
    absent: dict[str, str]  # canonical name -> the file that the index names, which is not there
    remarks: list[str]  # what a user should know


def locate(folder: Path) -> Location:
    """Where the tensors of a folder are.

    An index whose files do not hold what it says is replaced by the headers of all files that are there. Raises
    FileNotFoundError without any file, ValueError on a broken index and on a tensor that is in two files where no
    index decides.
    """
    index, beside = folder / INDEX_FILE, weight_files(folder)
    if not index.is_file():
        if not beside:
            raise FileNotFoundError(f"{folder / SINGLE_FILE} is missing{other_weights(folder)}")
        return Location(_from_headers(_open(folder, beside), folder, "no index decides"), {}, [])
    weight_map = read_index(index)
    files = _open(folder, (name for name in set(weight_map.values()) if (folder / name).is_file()))
    lost = {name: file for name, file in weight_map.items() if file not in files or name not in files[file]}
    if not lost:
        unnamed = [name for name in beside if name not in files]
        remarks = [f"{', '.join(unnamed)} ignored: {INDEX_FILE} does not name it"] if unnamed else []
        return Location(_placed((files[file], name) for name, file in weight_map.items()), {}, remarks)
    files |= _open(folder, (name for name in beside if name not in files))
    place = _from_headers(files, folder, f"{INDEX_FILE} is stale")
    absent = {canonical(name): file for name, file in lost.items() if file not in files}
    absent = {name: file for name, file in absent.items() if name not in place}
    first = min(lost)
    why = f"{first} is not in {lost[first]}" if lost[first] in files else f"{lost[first]} is not there"
    remark = f"{INDEX_FILE} is stale ({why}); the headers of {len(files)} files are read instead"
    return Location(place, absent, [remark])


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files in a folder; hidden ones are a file system's or a download's own."""
    names = (name for name in os.listdir(folder) if name.endswith(".safetensors") and not name.startswith("."))
    return sorted(name for name in names if (folder / name).is_file())


def other_weights(folder: Path) -> str:
    """ "; …" about weights of formats that are not read, or ""."""
    found = sorted(name for name in os.listdir(folder) if name.endswith(OTHER_WEIGHTS))
    return f"; found {found[0]}, and only safetensors files are read" if found else ""


def read_index(index: Path) -> dict[str, str]:
    """{tensor: file name} of an index. Raises ValueError on anything else, and on names that leave the folder."""
    weight_map = read_object(index, "an object with weight_map").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = "missing" if weight_map is None else f"a JSON {type(weight_map).__name__} of {weight_map!r:.40}"
        raise ValueError(f"{index}: weight_map is {found}; expected an object of tensor -> file name")
    for name, file in weight_map.items():
        if problem := _file_name_problem(file):
            raise ValueError(f"{index}: weight_map[{name!r}] is {file!r:.200}, {problem}")
    return weight_map


def _file_name_problem(file: Any) -> str | None:
    if not isinstance(file, str):
        return "no text; expected the name of a file in the folder"
    parts = PurePosixPath(file).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in file:
        return "which leaves the folder; expected the name of a file in it"
    return None if file.endswith(".safetensors") else "no safetensors file; only those are read"


def _open(folder: Path, names: Iterable[str]) -> dict[str, SafetensorsFile]:
    return {name: SafetensorsFile(folder / name) for name in sorted(names)}


def _from_headers(files: dict[str, SafetensorsFile], folder: Path, why: str) -> dict[str, tuple[SafetensorsFile, str]]:
    seen: dict[str, str] = {}
    for file, opened in files.items():
        for name in opened.names():
            if name in seen and not IGNORED.search(name):
                raise ValueError(
                    f"{folder}: {name} is in {seen[name]} and in {file}, and {why}; remove the file that is left over"
                )
            seen[name] = file
    return _placed((files[file], name) for name, file in seen.items())


def _placed(tensors: Iterable[tuple[SafetensorsFile, str]]) -> dict[str, tuple[SafetensorsFile, str]]:
    place: dict[str, tuple[SafetensorsFile, str]] = {}
    for file, name in tensors:
        other_file, other = place.setdefault(canonical(name), (file, name))
        if other != name:
            raise ValueError(f"{file.path}: {name} is {other} of {other_file.path} under another name; remove one")
    return place
