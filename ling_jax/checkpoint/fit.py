"""Checks that the tensors of a folder are those of its config.json."""

import re
from collections.abc import Iterable

from ling_jax.checkpoint.index import INDEX_FILE
from ling_jax.checkpoint.names import IGNORED, MTP_NAMES, TensorMapping
from ling_jax.checkpoint.safetensors_file import DTYPES
from ling_jax.checkpoint.tensors import Tensors
from ling_jax.config import ModelConfig
from ling_jax.messages import one_line, warn

LAYER = re.compile(r"model\.layers\.(\d{1,9})\.(.+)")
EXPERT = re.compile(r"\.mlp\.experts\.(\d{1,9})\.")
NAMED = 4


def check_sizes(config: ModelConfig, tensors: Tensors) -> None:
    """Raises ValueError where the numbers of layers, MTP layers and experts in the config differ from the tensors'.

    It builds nothing of the size that the config asks for, so it can run first.
    """
    names = tensors.names() | tensors.absent.keys()
    layers, mtp = _layers(names)
    trunk, count, depth = {n for n in layers if n < config.num_layers}, config.num_layers, config.mtp_depth
    if inside := sorted(mtp & trunk):
        raise ValueError(
            f"{tensors.folder}: num_hidden_layers of config.json is {count} with model.layers.{inside[0]}, an MTP "
            f"layer; expected {count - len(inside)}, and MTP layers in num_nextn_predict_layers"
        )
    if len(trunk) < count or (not depth and layers - trunk - mtp):
        raise ValueError(
            f"{tensors.folder}: num_hidden_layers of config.json is {count}, the tensors have {len(layers - mtp)} "
            f"layers ({_span('model.layers', layers - mtp) if layers else f'they are {_some(sorted(names))}'}); a file "
            "is missing, or config.json is of another model"
        )
    if (behind := len(layers - trunk)) < depth:
        raise ValueError(
            f"{tensors.folder}: num_nextn_predict_layers of config.json is {depth}, but of MTP layers the folder holds "
            f"{behind} (model.layers.{count} and on); set it to {behind} to load without them, or add their file"
        )
    experts = {int(match[1]) for name in names if (match := EXPERT.search(name))}
    if (depth or config.first_dense_layers < count) and len(experts) != config.num_experts:
        raise ValueError(
            f"{tensors.folder}: num_experts of config.json is {config.num_experts}, the tensors have {len(experts)} "
            f"experts ({_span('mlp.experts', experts)}); config.json is of another model"
        )


def check_tensors(tensors: Tensors, mappings: list[TensorMapping], config: ModelConfig) -> None:
    """Raises FileNotFoundError or ValueError where a tensor is missing, unknown, or of another shape or dtype.

    Prints warnings about the folder, such as a stale index.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for mapping in mappings:
        rows = expected.get(mapping.name, (0,))[0] + mapping.official[0]
        expected[mapping.name] = (rows, *mapping.official[1:])
    names = tensors.names()
    if missing := sorted(expected.keys() - names):
        _refuse_missing(missing, tensors, config)
    found = {name for name in names if not IGNORED.search(name)}
    uncounted = {n for n in _layers(names)[1] if n >= config.num_layers + config.mtp_depth}
    left_out = {name for name in found - expected.keys() if _layer(name) in uncounted}
    if unexpected := sorted(found - expected.keys() - left_out):
        raise ValueError(
            f"{tensors.folder}: {len(unexpected)} tensors belong to no part of the model: {_some(unexpected)}"
        )
    for name, shape in expected.items():
        if tensors.shape(name) != shape:
            raise ValueError(f"{tensors.folder}: {name} is {tensors.shape(name)}; config.json makes it {shape}")
        if tensors.stored_dtype(name) not in DTYPES:
            raise ValueError(
                f"{tensors.folder}: {name} is {tensors.stored_dtype(name)}; weights are one of {', '.join(DTYPES)}"
            )
    remarks = [*tensors.remarks]
    if left_out:
        remarks.append(
            f"num_nextn_predict_layers is {config.mtp_depth}: {len(left_out)} tensors of MTP layers are left out "
            f"({_some(sorted(left_out))})"
        )
    for remark in remarks:
        warn(f"{tensors.folder}: {remark}")


def _refuse_missing(missing: list[str], tensors: Tensors, config: ModelConfig) -> None:
    if files := sorted({tensors.absent[name] for name in missing if name in tensors.absent}):
        raise FileNotFoundError(
            f"{tensors.folder / files[0]} is missing, though {INDEX_FILE} lists it; the folder's download or copy is "
            f"incomplete ({len(files)} files with {len(missing)} tensors)"
        )
    hint = "".join(f"; {remark}" for remark in tensors.remarks)
    if all(_layer(name) >= config.num_layers for name in missing):
        raise ValueError(
            f"{tensors.folder}: {len(missing)} tensors of the MTP layers are missing that num_nextn_predict_layers "
            f"{config.mtp_depth} asks for: {_some(missing)}; set it to 0 to load without MTP{hint}"
        )
    raise ValueError(
        f"{tensors.folder}: {len(missing)} tensors are missing that config.json asks for: {_some(missing)}{hint}"
    )


def _layers(names: Iterable[str]) -> tuple[set[int], set[int]]:
    """(numbers of all layers, those that have what only an MTP layer has)."""
    matches = [match for name in names if (match := LAYER.fullmatch(name)) and not IGNORED.search(name)]
    return {int(m[1]) for m in matches}, {int(m[1]) for m in matches if m[2] in MTP_NAMES.values()}


def _layer(name: str) -> int:
    """The number of a tensor's layer; -1 for tensors outside of layers."""
    match = LAYER.fullmatch(name)
    return int(match[1]) if match else -1


def _span(prefix: str, numbers: set[int]) -> str:
    return f"{prefix}.{min(numbers)} to {prefix}.{max(numbers)}" if numbers else f"no {prefix}.N"


def _some(names: list[str]) -> str:
    """The first few names, made safe for a message."""
    return ", ".join(map(one_line, names[:NAMED])) + (", …" if len(names) > NAMED else "")
