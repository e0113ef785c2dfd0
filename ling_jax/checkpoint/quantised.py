"""FP8 weights of a Hugging Face folder: their format in config.json, and their values.

The releases have two formats: blocks of 128 x 128 with `X.weight_scale_inv` (2.0), and output channels with
`X.weight_scale` (compressed-tensors: 2.5 and 2.6). Both scales multiply the stored weight. Other formats raise an error
that names them.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jax.typing import DTypeLike

from ling_jax.checkpoint.hf_keys import QUANTISATION
from ling_jax.checkpoint.nonfinite import CHUNK
from ling_jax.checkpoint.safetensors_file import FP8
from ling_jax.messages import one_line, shown

SCALES = ("_scale_inv", "_scale")  # suffixes of a weight's name
SCALE_DTYPES = ("F32", "BF16", "F16")
# Suffixes of scales and zero points of activations and caches, which are not quantised here.
ACTIVATION_SCALES = (
    ".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point", ".q_scale", ".k_scale", ".v_scale",
)  # fmt: skip
SUPPORTED = (
    "quantised weights are read as FP8 in blocks (weight_scale_inv) or by output channel (weight_scale); "
    "take the BF16 or FP8 release, or dequantise the folder first"
)
# Suffix of a tensor's name -> its format. The first that matches is the format of the folder.
OTHER_NAMES = {
    ".weight_packed": "packed int4 or int8 (compressed-tensors)",
    ".weight_zero_point": "integers with zero points (compressed-tensors)",
    ".weight_scale_2": "NVFP4 (ModelOpt)",
    ".weight_global_scale": "NVFP4 (compressed-tensors)",
    ".g_idx": "GPTQ",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight.absmax": "bitsandbytes",
    ".weight.quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes (8 bit)",
    "_blocks": "MXFP4",
    ".biases": "MLX",
    ".scales": "MLX",
}
OTHER_DTYPES = {
    "F8_E4M3FNUZ": "FP8 of another encoding (fnuz)",
    "F8_E5M2FNUZ": "FP8 of another encoding (fnuz)",
    "F8_E8M0": "an MX format (scales of exponents alone)",
    "F6_E2M3": "MXFP6",
    "F6_E3M2": "MXFP6",
    "F4": "FP4",
}

INTEGERS = {"I8": "int8", "U8": "8-bit integers", "I32": "packed integers", "U32": "packed integers"}


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """FP8 weights in blocks of rows x columns that share a scale; None: all rows or columns of the tensor."""

    block_rows: int | None
    block_columns: int | None

    def scale_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The allowed shapes of the scale of a weight [rows, columns]; without blocks it may lack a dimension of 1."""
        rows = math.ceil(shape[0] / (self.block_rows or max(shape[0], 1)))
        columns = math.ceil(shape[1] / (self.block_columns or max(shape[1], 1)))
        shapes: list[tuple[int, ...]] = [(rows, columns)]
        if self.block_columns is None:
            shapes += [(rows,)] if self.block_rows else [(1,), ()]
        return shapes


PER_CHANNEL, PER_TENSOR = WeightFormat(1, None), WeightFormat(None, None)


def weight_format(hf: Mapping[str, Any]) -> WeightFormat | None:
    """The format of quantised weights in a config.json; None where weights are not quantised.

    Raises ValueError that names the key, and the format if it is not supported.
    """
    key = next((key for key in QUANTISATION if hf.get(key)), None)
    if key is None:
        return None
    found, where = hf[key], f"config.json: {key}"
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {shown(found)}; expected an object")
    method = found.get("quant_method")
    if method == "fp8":
        return _fp8(found, where)
    if method == "fbgemm_fp8":
        return PER_CHANNEL
    if method == "compressed-tensors" or "config_groups" in found:
        return _compressed(found, where)
    raise ValueError(f"{where} is {_method_name(found, key)}; {SUPPORTED}")


def _method_name(found: dict[str, Any], key: str) -> str:
    method, bits = found.get("quant_method"), found.get("bits")
    if method is None and (key == "quantization" or {"group_size", "bits"} <= found.keys()):
        method = "MLX"
    if method is None and any(name.startswith(("load_in_", "bnb_")) for name in found):
        method = "bitsandbytes"
    if method is None:
        return one_line(f"an object without quant_method: {', '.join(found)}")
    return f"{_plain(method)}{f' of {_plain(bits)} bits' if bits else ''}"


def _plain(value: Any) -> str:
    """A text without quotes; other values as `shown`."""
    return one_line(value) if isinstance(value, str) else shown(value)


def _fp8(found: dict[str, Any], where: str) -> WeightFormat:
    if (form := found.get("fmt") or "e4m3") not in ("e4m3", "e5m2"):
        raise ValueError(f"{where}.fmt is {shown(form)}; expected 'e4m3' or 'e5m2'")
    return _blocks(block, f"{where}.weight_block_size") if (block := found.get("weight_block_size")) else PER_TENSOR


def _blocks(block: Any, where: str) -> WeightFormat:
    if isinstance(block, str) and re.fullmatch(r"[0-9]{1,9}x[0-9]{1,9}", block):  # the form of older compressed-tensors
        block = [int(size) for size in block.split("x")]
    sizes = block if isinstance(block, list) else []
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{where} is {shown(block)}; expected two numbers of rows and columns, such as [128, 128]")
    return WeightFormat(*sizes)


def _compressed(found: dict[str, Any], where: str) -> WeightFormat | None:
    """The format of a compressed-tensors config; None where it quantises no weights."""
    for name in ("sparsity_config", "transform_config"):  # pruned weights, rotated weights
        value = found.get(name)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            raise ValueError(f"{where}.{name} is {shown(value)}, which is not computed here; {SUPPORTED}")
    groups = found.get("config_groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise ValueError(f"{where}.config_groups is {shown(groups)}; expected an object of objects")
    formats = set()
    for name, group in groups.items():
        if group.get("weights"):
            form = group.get("format") or found.get("format")
            formats.add(_group(group["weights"], f"{where}.config_groups.{name}.weights", form))
    if len(formats) > 1:
        raise ValueError(f"{where}.config_groups scale weights in {len(formats)} ways; one for all is read")
    return formats.pop() if formats else None


def _group(weights: Any, where: str, form: Any) -> WeightFormat:
    if not isinstance(weights, dict):
        raise ValueError(f"{where} is {shown(weights)}; expected an object")
    bits, kind, strategy = (weights.get(name) for name in ("num_bits", "type", "strategy"))
    if (bits, kind) != (8, "float") or weights.get("symmetric") is False:
        signs = "" if weights.get("symmetric", True) else ", not symmetric"
        raise ValueError(
            f"{where} are {_plain(kind)}{_plain(bits)} ({_plain(form or 'no format')}{signs}); {SUPPORTED}"
        )
    if strategy == "block":
        return _blocks(weights.get("block_structure"), f"{where}.block_structure")
    if strategy not in ("channel", "tensor"):
        raise ValueError(f"{where}.strategy is {shown(strategy)}; expected 'channel', 'block' or 'tensor'; {SUPPORTED}")
    return PER_CHANNEL if strategy == "channel" else PER_TENSOR


def refuse_other_formats(dtypes: Mapping[str, str]) -> None:
    """Raises ValueError where one of the tensors {name: dtype} has a quantised format that is not supported."""
    marked = [name for name in dtypes if name.endswith(tuple(OTHER_NAMES))]
    for end, form in OTHER_NAMES.items():
        for name in marked:
            if name.endswith(end):
                raise ValueError(f"{name} is of {form}; {SUPPORTED}")
    for name, dtype in dtypes.items():
        if dtype in OTHER_DTYPES:
            raise ValueError(f"{name} is {dtype}, {OTHER_DTYPES[dtype]}; {SUPPORTED}")
        if dtype in INTEGERS and scale_of(name, dtypes):
            raise ValueError(f"{name} is {dtype} with a scale, {INTEGERS[dtype]}; {SUPPORTED}")


def scale_of(name: str, names: Iterable[str]) -> str | None:
    """The name of a weight's scale among `names` (a set or dict); None without one."""
    return next((name + end for end in SCALES if name + end in names), None)


def is_activation_scale(name: str) -> bool:
    """Whether a tensor scales activations or caches and not weights."""
    return name.endswith(ACTIVATION_SCALES)


def pair_scales(tensors: Mapping[str, tuple[str, tuple[int, ...]]], form: WeightFormat | None) -> dict[str, str]:
    """{FP8 weight: its scale} of tensors {name: (dtype, shape)}. ValueError names one without its partner."""
    pairs = {name: scale_of(name, tensors) for name, (dtype, _) in tensors.items() if dtype in FP8}
    if pairs and form is None:
        name = min(pairs)
        raise ValueError(f"{name} is {tensors[name][0]}, but config.json has no quantization_config for FP8")
    for name, scale in pairs.items():
        if scale is None:
            asked = " nor ".join(name + end for end in SCALES)
            raise ValueError(f"{name} is {tensors[name][0]}, but its scale is missing: neither {asked}")
        _check_scale(name, scale, tensors, form)
    for name, (dtype, _) in tensors.items():
        base = next((name.removesuffix(end) for end in SCALES if name.endswith(end)), None)
        if base and pairs.get(base) != name and not is_activation_scale(name):
            weight = f"{base} is {tensors[base][0]}" if base in tensors else f"{base} is missing"
            raise ValueError(f"{name} ({dtype}) is the scale of no FP8 weight: {weight}")
    return pairs


def _check_scale(name: str, scale: str, tensors, form: WeightFormat) -> None:
    (_, shape), (dtype, found) = tensors[name], tensors[scale]
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} is FP8 of shape {shape}; FP8 weights are matrices")
    if dtype not in SCALE_DTYPES:
        raise ValueError(f"{scale} is {dtype}; scales are one of {', '.join(SCALE_DTYPES)}")
    if found not in (wanted := form.scale_shapes(shape)):
        shapes = " or ".join(map(str, wanted))
        raise ValueError(f"{scale} is {found}; quantization_config makes it {shapes} for {name} {shape}")


def dequantise(
    weight: np.ndarray, scale: np.ndarray, form: WeightFormat, first_row: int, dtype: DTypeLike
) -> np.ndarray:
    """fp32(weight) · fp32(scale), rounded to fp32 and then to `dtype`.

    `weight` [n, columns] are rows of a matrix from `first_row` on; `scale` is that of the whole matrix.
    """
    rows, columns = weight.shape
    block_rows = min(form.block_rows or first_row + rows, first_row + rows)
    block_columns = min(form.block_columns or columns, columns)
    scale = scale.astype(np.float32).reshape(-1, math.ceil(columns / block_columns))
    codes, values = weight.view(np.uint8), np.arange(256, dtype=np.uint8).view(weight.dtype).astype(np.float32)
    out = np.empty(weight.shape, dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller counts nonfinite values
        for begin in range(0, rows, step := max(1, CHUNK // columns)):
            end = min(begin + step, rows)
            blocks = np.arange(first_row + begin, first_row + end) // block_rows
            scales = np.repeat(scale[blocks], block_columns, axis=1)[:, :columns]
            part = values.take(codes[begin:end], mode="clip")
            part *= scales
            out[begin:end] = part
    return out


# Linear layers that the FP8 releases quantise; router, norms, embedding and head are not quantised.
QUANTISED_NAMES = re.compile(
    r"\.(attention\.(query_key_value|dense|g_proj|q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj)"
    r"|mlp(\.shared_experts|\.experts\.\d+)?\.(gate|up|down)_proj)\.weight$"
)
BLOCK = 128
BLOCK_CONFIG = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}
BLOCKS = WeightFormat(BLOCK, BLOCK)
E4M3 = FP8["F8_E4M3"]
LARGEST = float(ml_dtypes.finfo(E4M3).max)


def quantise(value: np.ndarray, form: WeightFormat = BLOCKS) -> tuple[np.ndarray, np.ndarray]:
    """(E4M3 weight [rows, columns], fp32 scale of each block) of a matrix of whole blocks; the last may be smaller.

    The largest element of a block becomes the largest code, so that quantising a dequantised weight changes nothing.
    Temporaries are small. Raises ValueError on NaN and infinity.
    """
    block_rows, block_columns = form.block_rows or len(value), form.block_columns or value.shape[1]
    codes = np.empty(value.shape, E4M3)
    scale = np.empty((-(-len(value) // block_rows), -(-value.shape[1] // block_columns)), np.float32)
    step = max(1, BLOCK // block_rows)  # rows of blocks
    for row in range(0, len(scale), step):
        rows = slice(row * block_rows, (row + step) * block_rows)
        codes[rows], scale[row : row + step] = _quantise_rows(value[rows], block_rows, block_columns)
    return codes, scale


def _quantise_rows(value: np.ndarray, block_rows: int, block_columns: int) -> tuple[np.ndarray, np.ndarray]:
    """`quantise` for a few rows of blocks."""
    rows, columns = value.shape
    padded_shape = -(-rows // block_rows) * block_rows, -(-columns // block_columns) * block_columns
    padded = np.zeros(padded_shape, np.float32)
    padded[:rows, :columns] = value
    blocks = padded.reshape(len(padded) // block_rows, block_rows, -1, block_columns)
    largest = np.abs(blocks).max(axis=(1, 3))
    if not np.isfinite(largest).all():
        raise ValueError("a block has NaN or infinity, which FP8 cannot hold; export in bfloat16")
    largest = np.maximum(largest, np.finfo(np.float32).tiny * LARGEST)  # a block of zeros
    scale = largest / np.float32(LARGEST)
    scale = (scale * np.float32(LARGEST)) / np.float32(LARGEST)  # stays the same in later rounds
    codes = np.clip(blocks / scale[:, None, :, None], -LARGEST, LARGEST).astype(E4M3)
    return codes.reshape(padded_shape)[:rows, :columns], scale


def rounded(value: np.ndarray, form: WeightFormat, dtype: DTypeLike) -> np.ndarray:
    """Whole blocks of a matrix after quantising and dequantising. Raises as `quantise`."""
    return dequantise(*quantise(value, form), form, 0, dtype)
