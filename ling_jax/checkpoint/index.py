"""The file of each tensor in a Hugging Face folder, by its index, or by the headers without a valid index."""

from collections.abc import Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ling_jax.checkpoint.names import IGNORED, canonical
from ling_jax.checkpoint.safetensors_file import SafetensorsFile
from ling_jax.files import read_object
from ling_jax.messages import one_line
from ling_jax.paths import MAX_REQUESTS, is_remote, names_in

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_NAME_BYTES = 255  # of a file on Linux and macOS
ADAPTER = "adapter_model.safetensors"  # of PEFT: a LoRA, which belongs to a base model
OTHER_WEIGHTS = (".gguf", ".ggml", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".npz")


class Location(NamedTuple):
    place: dict[str, tuple[SafetensorsFile, str]]  # canonical name -> file, name in the file
    absent: dict[str, str]  # canonical name -> the missing file that the index names
    remarks: list[str]  # for warnings


def locate(folder: Path) -> Location:
    """The locations of a folder's tensors.

    A stale index, whose files hold other tensors, is replaced by the headers of all files in the folder. Raises
    FileNotFoundError where there is no file, ValueError on a broken index, and on a tensor in two files without a valid
    index.
    """
    index, beside = folder / INDEX_FILE, weight_files(folder)
    if not index.is_file():
        if not beside:
            raise FileNotFoundError(f"{folder / SINGLE_FILE} is missing{other_weights(folder)}")
        return Location(_from_headers(_open(folder, beside), folder, "no index decides"), {}, _adapter(folder))
    weight_map = read_index(index)
    files = _open(folder, (name for name in set(weight_map.values()) if (folder / name).is_file()))
    lost = {name: file for name, file in weight_map.items() if file not in files or name not in files[file]}
    headers = ((name, file) for file, opened in files.items() for name in opened.names())
    unnamed = [(name, file) for name, file in headers if name not in weight_map and not IGNORED.search(name)]
    if lost:
        files |= _open(folder, (name for name in beside if name not in files))
    ignored, remarks = [name for name in beside if name not in files], _adapter(folder)
    if ignored:
        remarks.append(f"{', '.join(map(one_line, ignored))} ignored: {INDEX_FILE} does not name it")
    if not lost and not unnamed:
        return Location(_placed((files[file], name) for name, file in weight_map.items()), {}, remarks)
    place = _from_headers(files, folder, f"{INDEX_FILE} is stale")
    absent = {canonical(name): file for name, file in lost.items() if file not in files}
    absent = {name: file for name, file in absent.items() if name not in place}
    why = _first_difference(lost, unnamed, files)
    remarks.append(f"{INDEX_FILE} is stale ({why}); the headers of {len(files)} files are read instead")
    return Location(place, absent, remarks)


def _first_difference(lost: dict[str, str], unnamed: list[tuple[str, str]], files: Container[str]) -> str:
    """The first difference between an index and the headers of the `files` that it names, as text."""
    name, file = min(lost.items()) if lost else min(unnamed)
    if not lost:
        return f"{one_line(name)} of {one_line(file)} is not in it"
    return f"{one_line(name)} is not in {one_line(file)}" if file in files else f"{one_line(file)} is not there"


def _adapter(folder: Path) -> list[str]:
    return [f"{ADAPTER} ignored: an adapter is not merged into the weights"] if (folder / ADAPTER).is_file() else []


def is_workdir(folder: Path) -> bool:
    """Whether a folder is a run's workdir, and no Hugging Face folder with checkpoints of another program."""
    return (folder / "checkpoints").is_dir() and not weight_files(folder)


def weight_files(folder: Path) -> list[str]:
    """The names of the safetensors files in a folder, without hidden ones and adapters."""
    names = (name for name in names_in(folder) if name.endswith(".safetensors") and not name.startswith("."))
    return sorted(name for name in names if name != ADAPTER and (is_remote(folder) or (folder / name).is_file()))


def other_weights(folder: Path) -> str:
    """ "; …" with a hint about other weights in a folder without safetensors files, or ""."""
    for name in sorted(names_in(folder)):
        path = folder / name
        if name == "snapshots" and any(path.glob("*/config.json")):
            return f"; it is a cache of the Hub: name {min(path.glob('*/config.json')).parent}"
        if name == ADAPTER:
            return f"; found {name}, an adapter: merge it into its base model first"
        if name.endswith(".safetensors") and not name.startswith(".") and not path.is_file():
            return f"; {name} is a {'link to a file that is not there' if path.is_symlink() else 'folder'}"
        if name.lower().endswith((*OTHER_WEIGHTS, ".safetensors")):
            return f"; found {name}, and only *.safetensors files are read"
    return ""


def read_index(index: Path) -> dict[str, str]:
    """{tensor: file name} of an index. Raises ValueError on other content, and on file names outside of the folder."""
    weight_map = read_object(index, "an object with weight_map").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = "missing" if weight_map is None else f"a JSON {type(weight_map).__name__} of {weight_map!r:.40}"
        raise ValueError(f"{index}: weight_map is {found}; expected an object of tensor -> file name")
    plain: dict[str, str] = {}  # ./a is a
    for name, file in weight_map.items():
        if isinstance(file, str) and file in plain:
            continue
        if problem := _file_name_problem(file):
            raise ValueError(f"{index}: weight_map[{name!r:.200}] is {file!r:.200}, {problem}")
        plain[file] = str(PurePosixPath(file))
    return {name: plain[file] for name, file in weight_map.items()}


def _file_name_problem(file: Any) -> str | None:
    if not isinstance(file, str):
        return "no text; expected the name of a file in the folder"
    parts = PurePosixPath(file).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in file:
        return "which leaves the folder; expected the name of a file in it"
    if any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in parts):
        return f"longer than {MAX_NAME_BYTES} bytes; expected the name of a file in the folder"
    return None if file.endswith(".safetensors") else "no safetensors file; only those are read"


def _open(folder: Path, names: Iterable[str]) -> dict[str, SafetensorsFile]:
    names = sorted(names)
    with ThreadPoolExecutor(MAX_REQUESTS if is_remote(folder) else 1) as pool:
        return dict(zip(names, pool.map(lambda name: SafetensorsFile(folder / name), names), strict=True))


def _from_headers(files: dict[str, SafetensorsFile], folder: Path, why: str) -> dict[str, tuple[SafetensorsFile, str]]:
    seen: dict[str, str] = {}
    for file, opened in files.items():
        for name in opened.names():
            if name in seen and not IGNORED.search(name):
                raise ValueError(
                    f"{folder}: {one_line(name)} is in {one_line(seen[name])} and in {one_line(file)}, and {why}; "
                    "remove the file that is left over"
                )
            seen[name] = file
    return _placed((files[file], name) for name, file in seen.items())


def _placed(tensors: Iterable[tuple[SafetensorsFile, str]]) -> dict[str, tuple[SafetensorsFile, str]]:
    place: dict[str, tuple[SafetensorsFile, str]] = {}
    for file, name in tensors:
        other_file, other = place.setdefault(canonical(name), (file, name))
        if other != name:
            name, other = one_line(name), one_line(other)
            raise ValueError(f"{file.path}: {name} is {other} of {other_file.path} under another name; remove one")
    return place
