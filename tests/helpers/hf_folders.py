"""Folders as people bring them, made from a good one: raw safetensors files, FP8 weights."""

import json
import math
import re
import shutil
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from tests.conftest import FIXTURES

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int8": "I8", "uint8": "U8", "int32": "I32", "uint32": "U32", "int64": "I64",
}  # fmt: skip
SOURCE = FIXTURES / "v25_yarn_mscale"
WEIGHTS = "model.safetensors"
E4M3 = ml_dtypes.float8_e4m3fn
# What FP8 releases leave as it is: routers, norms, embedding, head.
LINEAR = re.compile(r"\.(mlp\.(experts|shared_experts)\.|mlp\.(gate|up|down)_proj\.|attention\.\w+\.weight|eh_proj\.)")


def write_tensors(path: Path, tensors: dict[str, np.ndarray], dtypes: dict[str, str] | None = None) -> None:
    """A safetensors file; `dtypes` are written into the header in place of the arrays' own."""
    header, body = {}, b""
    for name, value in tensors.items():
        dtype = (dtypes or {}).get(name) or DTYPES[value.dtype.name]
        offsets = [len(body), len(body) + value.nbytes]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        body += value.tobytes()
    write_raw(path, json.dumps(header).encode(), body)


def write_raw(path: Path, header: bytes, body: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """{name: tensor} of all files of a folder without FP8."""
    return {k: v for file in folder.glob("*.safetensors") for k, v in safetensors.numpy.load_file(file).items()}


def edit_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def is_quantised(name: str, value: np.ndarray) -> bool:
    return value.ndim == 2 and bool(LINEAR.search(name)) and "layernorm" not in name


def quantise(weight: np.ndarray, block: tuple[int, int], dtype=E4M3, scale_dtype="float32"):
    """(FP8 weight, scale [blocks of rows, blocks of columns]), block by block with the largest entry at the top."""
    rows, columns = (math.ceil(size / part) for size, part in zip(weight.shape, block, strict=True))
    scale = np.empty((rows, columns), scale_dtype)
    found = np.empty(weight.shape, dtype)
    for i, j, part in _blocks(weight.astype(np.float32), block):
        scale[i, j] = np.abs(part).max() / float(ml_dtypes.finfo(dtype).max) or 1.0
        found[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]] = part / np.float32(scale[i, j])
    return found, scale


def dequantise_by_hand(weight: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """One block after the other, in float32."""
    out = np.empty(weight.shape, np.float32)
    for i, j, part in _blocks(weight.astype(np.float32), block):
        rows, columns = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
        out[rows, columns] = part * scale[i, j].astype(np.float32)
    return out


def _blocks(weight: np.ndarray, block: tuple[int, int]):
    for i in range(math.ceil(weight.shape[0] / block[0])):
        for j in range(math.ceil(weight.shape[1] / block[1])):
            yield i, j, weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]


def fp8_block_config(block=(128, 128)) -> dict:
    """As the 2.0 FP8 releases have it."""
    return {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(block)}


def compressed_config(strategy="channel", *, structure=None, num_bits=8, kind="float", form="float-quantized") -> dict:
    """As llm-compressor writes it for the 2.6 releases."""
    weights = {
        "actorder": None, "block_structure": structure, "dynamic": False, "group_size": None, "num_bits": num_bits,
        "observer": "minmax", "observer_kwargs": {}, "strategy": strategy, "symmetric": True, "type": kind,
    }  # fmt: skip
    activations = weights | {"dynamic": True, "strategy": "token", "observer": None}
    group = {"input_activations": activations, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group}, "format": form, "global_compression_ratio": None, "ignore": ["lm_head"],
        "kv_cache_scheme": None, "quant_method": "compressed-tensors", "quantization_status": "compressed",
        "sparsity_config": {}, "transform_config": {}, "version": "0.12.2",
    }  # fmt: skip


def copy_of_source(tmp_path: Path) -> Path:
    """A folder with the fixture SOURCE, to be changed."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", WEIGHTS):
        shutil.copyfile(SOURCE / name, tmp_path / "model" / name)
    return tmp_path / "model"


def edit_tensors(folder: Path, edit) -> None:
    write_tensors(folder / WEIGHTS, edit(read_tensors(folder)))


def warnings(capfd) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
