"""A Hugging Face folder, read part by part."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jax.typing import DTypeLike

from ling_jax.checkpoint.chunks import Index
from ling_jax.checkpoint.fit import check_sizes, check_tensors
from ling_jax.checkpoint.hf_config import from_hf
from ling_jax.checkpoint.names import TensorMapping, from_official, narrowed, tensor_mappings, to_official
from ling_jax.checkpoint.parts import Reader
from ling_jax.checkpoint.quantised import rounded
from ling_jax.checkpoint.safetensors_file import DTYPES
from ling_jax.checkpoint.tensors import Tensors
from ling_jax.config import ModelConfig
from ling_jax.files import read_object
from ling_jax.model.lightning import log_decays
from ling_jax.model.transformer import model_spec
from ling_jax.paths import as_path
from ling_jax.spec import named_leaves


class HfReader(Reader):
    """Reads a folder of the official format; `dtype` as in `load_hf`.

    Raises FileNotFoundError, PermissionError or ValueError that name the file or tensor, before weights are read.
    """

    def __init__(self, folder: epath.PathLike, *, dtype: DTypeLike | None = None):
        folder = as_path(folder)
        content = read_config(folder)
        self._tensors = Tensors(folder, content)
        config = config_of(content, self._tensors, dtype)
        mappings = tensor_mappings(model_spec(config), config)
        check_tensors(self._tensors, mappings, config)
        self._mappings = {(mapping.leaf, mapping.index): mapping for mapping in mappings}
        self._quantised = {mapping.leaf for mapping in mappings if self._tensors.format_of(mapping.name)}
        self._depth = {mapping.leaf: len(mapping.index) for mapping in mappings}
        self._shapes = {path: leaf.shape for path, leaf in named_leaves(model_spec(config)).items()}
        super().__init__(config, self._stored_dtypes(mappings, config, dtype))

    def read(self, leaf: str, index: Index = ()) -> np.ndarray:
        if len(index) < self._depth[leaf]:
            return np.stack([self.read(leaf, (*index, i)) for i in range(self._shapes[leaf][len(index)])])
        depth = self._depth[leaf]
        mapping = narrowed(self._mappings[leaf, index[:depth]], index[depth:])
        rows = slice(mapping.row, mapping.row + mapping.official[0])
        return from_official(self._tensors.read(mapping.name, rows, self.dtypes[leaf]), mapping)

    def as_stored(self, value: np.ndarray, leaf: str, index: Index = ()) -> np.ndarray:
        """As in `Reader`; a part of an FP8 weight must consist of whole blocks.

        Raises ValueError on values that FP8 cannot hold.
        """
        if leaf not in self._quantised:
            return super().as_stored(value, leaf, index)
        depth = self._depth[leaf]
        if len(index) < depth:
            return np.stack([self.as_stored(part, leaf, (*index, i)) for i, part in enumerate(value)])
        mapping = narrowed(self._mappings[leaf, index[:depth]], index[depth:])
        if (form := self._tensors.format_of(mapping.name)) is None:
            return super().as_stored(value, leaf, index)
        return from_official(rounded(to_official(value, mapping), form, self.dtypes[leaf]), mapping)

    def is_quantised(self, leaf: str, index: Index = ()) -> bool:
        return self._tensors.format_of(self._mappings[leaf, index[: self._depth[leaf]]].name) is not None

    def report_nonfinite(self, where: str = "") -> None:
        self._tensors.report_nonfinite()

    def _stored_dtypes(self, mappings: list[TensorMapping], config: ModelConfig, dtype) -> dict[str, np.dtype]:
        """The dtype of each leaf; the widest one where its tensors have several, so that no value changes."""
        found: dict[str, np.dtype] = {}
        for mapping in mappings:
            stored = self._tensors.dtype(mapping.name, config.compute_dtype) if dtype is None else np.dtype(dtype)
            found[mapping.leaf] = np.promote_types(found.get(mapping.leaf, stored), stored)
        return found


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises FileNotFoundError, PermissionError or ValueError that name the file."""
    file = folder / "config.json"
    try:
        return read_object(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{file} is missing: {folder} is not a Hugging Face model folder") from None


def config_of(hf: dict[str, Any], tensors: Tensors, dtype: DTypeLike | None) -> ModelConfig:
    """The ModelConfig of a folder: its config.json, and the slope convention of the file or else of the tensors.

    Raises ValueError where the two do not fit together.
    """
    try:
        config = from_hf(hf)
    except ValueError as error:
        raise ValueError(f"{tensors.folder}: {error}") from None
    check_sizes(config, tensors)
    if dtype is not None:
        config = dataclasses.replace(config, compute_dtype=dtype)
    if hf.get("slope_layer_offset") is None:
        config = dataclasses.replace(config, slope_layer_offset=_stored_slope_offset(tensors, config))
    return config


def _stored_slope_offset(tensors: Tensors, config: ModelConfig) -> int:
    """The slope convention of a stored slope of a Lightning layer; 0 without one."""
    lightning = [n for n in range(config.num_layers) if not config.is_full_attention_layer(n)]
    slopes, names = {f"model.layers.{n}.attention.slope": n for n in lightning}, tensors.names()
    stored = [name for name in slopes if name in names and tensors.stored_dtype(name) in DTYPES]
    for name in stored[-1:]:  # the last layers differ most
        layer = slopes[name]
        value = np.abs(tensors.read(name, slice(None), np.float64)).reshape(-1)
        for offset in (0, -1):
            expected = -log_decays(dataclasses.replace(config, slope_layer_offset=offset))[layer]
            if value.shape == expected.shape and np.allclose(value, expected, rtol=5e-3):
                return offset
        raise ValueError(f"{name} fits neither slope convention of layer {layer} (slope_layer_offset 0 or -1)")
    return 0
