"""Names and layouts of the official checkpoints, as data (docs/architecture.md §12).

A linear layer of torch is [out, in]; ours is its transpose, reshaped to [in axes…, out axes…]. Leaves that share an
official tensor are consecutive rows of it.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from ling_jax.checkpoint.chunks import Index
from ling_jax.config import ModelConfig
from ling_jax.model.layers import layer_numbers
from ling_jax.spec import Leaf, Spec, named_leaves

# Leaf of a layer -> official name in the layer.
LAYER_NAMES = {
    "mixer_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "mixer/q": "attention.query_key_value.weight",
    "mixer/k": "attention.query_key_value.weight",
    "mixer/v": "attention.query_key_value.weight",
    "mixer/q_bias": "attention.query_key_value.bias",
    "mixer/k_bias": "attention.query_key_value.bias",
    "mixer/v_bias": "attention.query_key_value.bias",
    "mixer/q_norm": "attention.query_layernorm.weight",
    "mixer/k_norm": "attention.key_layernorm.weight",
    "mixer/gate": "attention.g_proj.weight",
    "mixer/norm": "attention.g_norm.weight",
    "mixer/out": "attention.dense.weight",
    "mixer/out_bias": "attention.dense.bias",
    "mixer/q_a": "attention.q_a_proj.weight",
    "mixer/q_a_bias": "attention.q_a_proj.bias",
    "mixer/q_a_norm": "attention.q_a_layernorm.weight",
    "mixer/q_b": "attention.q_b_proj.weight",
    "mixer/kv_a": "attention.kv_a_proj_with_mqa.weight",
    "mixer/kv_a_bias": "attention.kv_a_proj_with_mqa.bias",
    "mixer/kv_a_norm": "attention.kv_a_layernorm.weight",
    "mixer/kv_b": "attention.kv_b_proj.weight",
    "ffn/gate": "mlp.gate_proj.weight",
    "ffn/up": "mlp.up_proj.weight",
    "ffn/down": "mlp.down_proj.weight",
    "ffn/router": "mlp.gate.weight",
    "ffn/expert_bias": "mlp.gate.expert_bias",
    "ffn/experts/gate": "mlp.experts.{expert}.gate_proj.weight",
    "ffn/experts/up": "mlp.experts.{expert}.up_proj.weight",
    "ffn/experts/down": "mlp.experts.{expert}.down_proj.weight",
    "ffn/shared/gate": "mlp.shared_experts.gate_proj.weight",
    "ffn/shared/up": "mlp.shared_experts.up_proj.weight",
    "ffn/shared/down": "mlp.shared_experts.down_proj.weight",
}
MLA_QUERY = "attention.q_proj.weight"  # of MLA without q_lora_rank
MTP_NAMES = {
    "embed_norm": "enorm.weight",
    "hidden_norm": "hnorm.weight",
    "proj": "eh_proj.weight",
    "final_norm": "final_layernorm.weight",
}
TOP_NAMES = {
    "embed": "model.word_embeddings.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
# Official name -> other name of the same tensor in some files.
ALIASES = {
    "mlp.gate.expert_bias": "mlp.gate.e_score_correction_bias",
    "attention.dense.": "attention.o_proj.",
}
# Buffers and copies that some exporters write; only `.slope` is read, for its values.
IGNORED = re.compile(r"\.(inv_freq|slope)$|^model\.mtp")
LAYER_OF = "model.layers.{layer}."
NUMBER = re.compile(r"model\.layers\.(\d+)\.")
STRIP = 64  # rows that are transposed at a time: five times faster than all at once (measured on a CPU)


def canonical(name: str) -> str:
    """The official name of a tensor that may be stored under another name."""
    for official, alias in ALIASES.items():
        name = name.replace(alias, official)
    return name


class TensorMapping(NamedTuple):
    """The part of a leaf that is an official tensor, or consecutive rows of one."""

    leaf: str  # path in the parameters
    index: Index  # in the leaf: its stacked dimensions, and further ones for a part of a tensor
    name: str  # official name
    row: int  # first row in the official tensor
    shape: tuple[int, ...]  # of the leaf at `index`
    official: tuple[int, ...]  # shape of these rows in the official tensor


def tensor_mappings(spec: Spec, config: ModelConfig) -> list[TensorMapping]:
    """The mappings of all leaves, sorted by official name; leaves of one tensor are in the order of their rows."""
    found = []
    for path, leaf in named_leaves(spec).items():
        found += [_mapping(path, leaf, index, name) for index, name in _official_names(path, leaf, config)]
    rank = {key: position for position, key in enumerate(LAYER_NAMES)}  # q before k before v
    found.sort(key=lambda mapping: (mapping.name, rank.get("/".join(mapping.leaf.split("/")[-2:]), -1)))
    return _with_rows(found)


def _official_names(path: str, leaf: Leaf, config: ModelConfig):
    """(index in the leaf's stacked dimensions, official name) of each official tensor in a leaf."""
    if path in TOP_NAMES:
        yield (), TOP_NAMES[path]
        return
    parts = path.split("/")
    if parts[0] == "segments":
        segment, run, key = parts[1], parts[2], "/".join(parts[3:])
        numbers = layer_numbers(config)[segment, run]
        indices = list(np.ndenumerate(numbers))
        suffix = _layer_suffix(run.split("_")[1], key)
    else:
        key = "/".join(parts[1:]).removeprefix("layer/")
        indices = [((depth,), config.num_layers + depth) for depth in range(config.mtp_depth)]
        suffix = MTP_NAMES.get(key) or _layer_suffix(config.full_attention, key)
    for index, layer in indices:
        prefix = LAYER_OF.format(layer=layer)
        if "{expert}" in suffix:
            yield from ((((*index, e)), prefix + suffix.format(expert=e)) for e in range(config.num_experts))
        else:
            yield index, prefix + suffix


def _layer_suffix(mixer: str, key: str) -> str:
    return MLA_QUERY if (mixer, key) == ("mla", "mixer/q") else LAYER_NAMES[key]


def _mapping(path: str, leaf: Leaf, index: tuple[int, ...], name: str) -> TensorMapping:
    shape = leaf.shape[len(index) :]
    if len(shape) == 1 or name.endswith(("g_norm.weight", ".bias")):
        official = (math.prod(shape),)
    elif path == "embed":
        official = shape
    else:
        inputs = _input_dims(path)
        official = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
    return TensorMapping(path, index, name, 0, shape, official)


def _input_dims(path: str) -> int:
    """The number of leading dimensions that are the input of a matrix: 2 for [H, V] and MTP's two vectors, else 1."""
    return 2 if path.endswith(("mixer/out", "mtp/proj")) else 1


def _with_rows(ordered: list[TensorMapping]) -> list[TensorMapping]:
    rows: dict[str, int] = {}
    placed = []
    for mapping in ordered:
        placed.append(mapping._replace(row=rows.get(mapping.name, 0)))
        rows[mapping.name] = rows.get(mapping.name, 0) + mapping.official[0]
    return placed


def in_file_order(mappings: list[TensorMapping]) -> list[TensorMapping]:
    """The mappings in the order of files: the embedding, layer after layer, then the final norm and the head."""

    def order(mapping: TensorMapping) -> tuple[int, int]:
        if match := NUMBER.match(mapping.name):
            return 1, int(match[1])
        return (0 if mapping.leaf == "embed" else 2), 0

    return sorted(mappings, key=order)


def row_dim(mapping: TensorMapping) -> int:
    """The dimension of `mapping.shape` that is the outer one of the official rows."""
    return _input_dims(mapping.leaf) if _is_transposed(mapping) else 0


def narrowed(mapping: TensorMapping, rest: Index) -> TensorMapping:
    """The mapping of fewer rows; `rest` is an index into `mapping.shape` that cuts only `row_dim`."""
    dim = row_dim(mapping)
    if len(rest) <= dim:
        return mapping
    size = mapping.shape[dim]
    begin, end, _ = rest[dim].indices(size)
    rows = mapping.official[0] // size
    return mapping._replace(
        index=(*mapping.index, *rest),
        row=mapping.row + begin * rows,
        shape=(*mapping.shape[:dim], end - begin, *mapping.shape[dim + 1 :]),
        official=((end - begin) * rows, *mapping.official[1:]),
    )


def from_official(value: np.ndarray, mapping: TensorMapping) -> np.ndarray:
    """The rows of a mapping in an official tensor, in our layout."""
    return (transposed(value) if _is_transposed(mapping) else value).reshape(mapping.shape)


def to_official(value: np.ndarray, mapping: TensorMapping) -> np.ndarray:
    """The inverse of `from_official`."""
    if not _is_transposed(mapping):
        return np.ascontiguousarray(value).reshape(mapping.official)
    return transposed(value.reshape(mapping.official[::-1]))


def transposed(matrix: np.ndarray) -> np.ndarray:
    """A contiguous copy of the transpose."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    bits = f"u{matrix.dtype.itemsize}"  # numpy would copy elements of unknown dtypes one by one
    source, target = matrix.view(bits), out.view(bits)
    for first in range(0, len(source), STRIP):
        target[:, first : first + STRIP] = source[first : first + STRIP].T
    return out


def _is_transposed(mapping: TensorMapping) -> bool:
    return len(mapping.official) == 2 and mapping.leaf != "embed"
