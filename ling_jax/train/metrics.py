"""Metrics of a run: FLOPs, the peak of the devices, norms by group, and the files that hold them."""

import dataclasses
import json
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from ling_jax.config import ModelConfig
from ling_jax.data.json_lines import read_objects
from ling_jax.files import parse_object, replacing
from ling_jax.model import layer_plan, model_spec
from ling_jax.model.layers import MIXERS, mtp_layer_kind
from ling_jax.model.transformer import with_weighted_mtp
from ling_jax.partials import write_errors
from ling_jax.paths import append
from ling_jax.spec import named_leaves, path_name
from ling_jax.train.tensorboard import EventFile
from ling_jax.train.wandb_run import WandbRun

# Dense bf16 peak of one device, FLOP/s; vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12, "TPU7x": 2307e12,
    "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12,
}  # fmt: skip

REPORTED = {"tokens_per_second", "eval_loss"}  # lines with one of these go to TensorBoard
RENAMED_METRICS = {"held_out_loss": "eval_loss", "bad": "nonfinite"}  # name in older workdirs -> name of the metric


def parameter_group(path: str) -> str:
    """The group of a parameter in reports: embed, head, mtp, lightning, mla, gqa, experts, router, dense or norms."""
    parts = path.split("/")
    if parts[0] in ("embed", "head", "mtp"):
        return parts[0]
    if parts[-1].endswith("norm") or len(parts) == 1:
        return "norms"
    if parts[3] == "mixer":
        return parts[2].split("_")[1]
    return {"experts": "experts", "router": "router", "expert_bias": "router"}.get(parts[4], "dense")


def group_norms(name: str, tree: Any) -> dict[str, jax.Array]:
    """{"name/group": Euclidean norm of the group's leaves}."""
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        group = f"{name}/{parameter_group(path_name(path))}"
        squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(leaf))
    return {group: jnp.sqrt(square) for group, square in squares.items()}


def matmul_parameters(config: ModelConfig) -> int:
    """Number of weights that multiply one token (docs/architecture.md §13).

    These are all matrices but the embedding, `top_k` of the experts, and the head once more for every MTP depth.
    """
    return sum(_multiplying(path, leaf, config) for path, leaf in named_leaves(model_spec(config)).items())


def _multiplying(path: str, leaf, config: ModelConfig) -> int:
    """How many weights of a parameter multiply one token."""
    size = math.prod(leaf.shape)
    if path == "embed" or path.endswith(("norm", "bias")):
        return 0
    if "/experts/" in path:
        return size * config.top_k // config.num_experts
    if path == "head":
        return size * (1 + config.mtp_predictions)
    if path.startswith("mtp/"):
        return size * config.mtp_predictions // config.mtp_depth
    return size


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Forward and backward FLOPs of a token in rows of `length` tokens (docs/architecture.md §13).

    6 for each matmul weight, 3 · 2 · (T+1)/2 · H · (K + V) for each layer of causal softmax attention, and
    3 · 4 · H · K² for each Lightning layer (its recurrent form). Recomputation and the extra work of the chunked form
    are no model FLOPs.
    """
    trunk = sum(
        segment.repeats * run.count * MIXERS[run.kind.mixer].flops(config, length)
        for segment in layer_plan(config)
        for run in segment.runs
    )
    without_mtp = dataclasses.replace(config, mtp_depth=0)
    return 6.0 * matmul_parameters(without_mtp) + trunk + mtp_flops_per_token(config, length)


def read_flops_per_row(config: ModelConfig, tokens: int, length: int) -> float:
    """FLOPs of reading the last `tokens` of the `length` tokens of a row into a cache, with logits of the last token.

    They are counted as in `flops_per_token`, forward only and without MTP. A prefill reads `tokens` = `length` tokens,
    a decode step one.
    """
    head = 2.0 * config.hidden_size * config.vocab_size
    # These tokens have length - (tokens - 1) / 2 keys on average, as those of whole rows of 2 * length - tokens tokens.
    per_token = flops_per_token(dataclasses.replace(config, mtp_depth=0), 2 * length - tokens) / 3
    return tokens * (per_token - head) + head


def frozen_flops_per_token(config: ModelConfig, trainable: Any) -> float:
    """The FLOPs of `flops_per_token` that frozen weights save: 2 each, for their gradients.

    `trainable` is a tree of bools over the parameters.
    """
    leaves = zip(named_leaves(model_spec(config)).items(), jax.tree.leaves(trainable), strict=True)
    computed = with_weighted_mtp(config)
    frozen = [leaf for leaf, keep in leaves if not keep and (computed.mtp_depth or not leaf[0].startswith("mtp/"))]
    return 2.0 * sum(_multiplying(*leaf, computed) for leaf in frozen)


def mtp_flops_per_token(config: ModelConfig, length: int) -> float:
    """The part of `flops_per_token` for multi-token prediction: its layers and its logits.

    It is 0 where `mtp_loss_weight` is 0, since training computes no MTP then.
    """
    if not config.mtp_loss_weight:
        return 0.0
    parameters = matmul_parameters(config) - matmul_parameters(dataclasses.replace(config, mtp_depth=0))
    return 6.0 * parameters + config.mtp_predictions * MIXERS[mtp_layer_kind(config).mixer].flops(config, length)


def peak_flops(mesh: jax.sharding.Mesh) -> float:
    """Peak FLOP/s of a mesh: the data sheet's, or the measured rate of a large matmul where there is none.

    All CPU devices of a process share one machine; their rate is measured in float32, that of others in bfloat16.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        # A larger matmul has the same rate and would delay the start.
        return jax.process_count() * matmul_flops(1024, jnp.float32)
    return mesh.size * (data_sheet_flops(device) or matmul_flops(2048, jnp.bfloat16))


def data_sheet_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device from `PEAK_FLOPS`; None for a device that is not in it."""
    for name, peak in sorted(PEAK_FLOPS.items(), key=lambda item: -len(item[0])):
        if device.device_kind.startswith(name):
            return peak
    return None


def matmul_flops(size: int, dtype: DTypeLike) -> float:
    """FLOP/s of a matmul of two [size, size] arrays on the first device, the best of five."""
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda x: x @ x)
    multiply(x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


class MetricsWriter:
    """Writes metrics.jsonl, a line for each step, and TensorBoard events into a folder; only host 0 writes.

    `wandb` gets what TensorBoard gets.
    """

    def __init__(self, folder: epath.PathLike, *, first_step: int, wandb: WandbRun | None = None):
        self._tensorboard, self._wandb = None, wandb
        if jax.process_index():
            return
        self._path = epath.Path(folder) / "metrics.jsonl"
        drop_lines_from(self._path, first_step)
        self._tensorboard = EventFile(epath.Path(folder) / "tensorboard", first_step=first_step)

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Appends the lines; those with a speed or an evaluation go to TensorBoard too. Raises OSError."""
        if self._tensorboard is None:
            return
        texts = (json.dumps(_json_values(line), allow_nan=False) + "\n" for line in lines)
        with write_errors(self._path):
            append(self._path, "".join(texts).encode())
        for line in lines:
            if not REPORTED.isdisjoint(line):
                self._tensorboard.add(line)
                if self._wandb is not None:
                    self._wandb.add(line)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.close()


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, one for each step, with the names that this version writes.

    Raises OSError, and ValueError on a line that is no JSON object.
    """
    lines = (line for _, line in read_objects(path))
    return [{RENAMED_METRICS.get(name, name): value for name, value in line.items()} for line in lines]


def drop_lines_from(path: epath.Path, step: int) -> None:
    """Removes the lines of `step` and later ones, which a killed run wrote after its last checkpoint and runs again.

    Raises ValueError on a line without a step, unless it is the last one and cut off.
    """
    if not path.exists():
        return
    lines = []
    content = path.read_bytes()
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            if parse_object(line, str(path))["step"] < step:
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            if number <= content.count(b"\n"):  # only the last line may have been cut off
                raise ValueError(f"{path}, line {number} has no step; remove it") from None
    with replacing(path) as file:
        file.writelines(line + b"\n" for line in lines)


def to_line(step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a step as JSON values; NaN and infinity, which JSON lacks, are text."""
    return _json_values({"step": step} | {name: np.asarray(value).item() for name, value in metrics.items()})


def _json_values(line: dict[str, Any]) -> dict[str, Any]:
    return {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x for name, x in line.items()}
