"""Hugging Face folders (config.json + safetensors) <-> parameters."""

import jax
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from ling_jax.checkpoint.hf_reader import HfReader, config_of, read_config
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.names import tensor_mappings, to_official
from ling_jax.checkpoint.parts import TreeReader, TreeWriter
from ling_jax.checkpoint.placed import load_onto
from ling_jax.checkpoint.tensors import Tensors
from ling_jax.checkpoint.transfer import transfer
from ling_jax.config import ModelConfig
from ling_jax.files import new_folder
from ling_jax.model.transformer import model_spec
from ling_jax.paths import as_path, is_new
from ling_jax.spec import Params, named_leaves


def load_hf(
    path: epath.PathLike, *, dtype: DTypeLike | None = None, mesh: jax.sharding.Mesh | None = None
) -> tuple[Params, ModelConfig]:
    """(params, config) of a Hugging Face folder of the official format.

    Arrays are on the host, or on the mesh; then each process reads the parts of its devices. `dtype` is that of the
    parameters and of `config.compute_dtype`. None keeps the stored dtypes and computes in the config's `torch_dtype`,
    to which FP8 weights are dequantised (docs/checkpoints.md). The slope convention is the config's
    `slope_layer_offset`, else the one that a stored `*.slope` tensor has, else 0. Warnings about the folder, such as
    weights that are not finite, go to stderr.

    Raises FileNotFoundError, PermissionError or ValueError that name the file or tensor, before weights are read.
    """
    reader = HfReader(path, dtype=dtype)
    if mesh is not None:
        return load_onto(reader, mesh), reader.config
    writer = TreeWriter(reader.config, reader.dtypes)
    transfer(reader, writer)
    return writer.params, reader.config


def load_hf_config(path: epath.PathLike, *, dtype: DTypeLike | None = None) -> ModelConfig:
    """The config that `load_hf` returns, without reading weights. Raises as `load_hf`."""
    folder = as_path(path)
    hf = read_config(folder)
    with Tensors(folder, hf) as tensors:
        return config_of(hf, tensors, dtype)


def save_hf(params: Params, config: ModelConfig, path: epath.PathLike) -> None:
    """Writes a folder that `load_hf` and the official code read: shards of at most 5 GiB, an index and config.json.

    config.json has `slope_layer_offset`; with 0 the official HF code, which assumes -1, needs a patch. The folder
    appears whole or not at all. Raises FileExistsError where it exists and is not empty.
    """
    folder = as_path(path)
    if not is_new(folder):
        raise FileExistsError(f"{folder} exists and is not empty; save into a new folder")
    with new_folder(folder) as partial:
        reader = TreeReader(params, config)
        transfer(reader, HfWriter(partial, config, reader.dtypes))


def hf_tensors(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """{official name: array in the official layout} of any tree with the parameters' structure, such as gradients."""
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    pieces: dict[str, list[np.ndarray]] = {}
    for mapping in tensor_mappings(model_spec(config), config):
        pieces.setdefault(mapping.name, []).append(to_official(leaves[mapping.leaf][mapping.index], mapping))
    return {name: np.concatenate(rows) if len(rows) > 1 else rows[0] for name, rows in pieces.items()}
