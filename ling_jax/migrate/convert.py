"""Conversion of whole models between the forms of a migration, layer by layer from disk to disk.

    gqa (Ling 2.0) -> linear (Lightning and GQA layers) -> fused (no QK-norm in GQA layers) -> mla (the hybrid)

The kinds of a layer in the two configs determine its conversion, so a step may skip forms; "gqa" to "mla" converts
everything at once.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.layerwise import LayerActivations, kind_of, layerwise_forward, mixer_outputs
from ling_jax.checkpoint.parts import TOP, Reader, layer_leaves
from ling_jax.checkpoint.relay import Relay
from ling_jax.checkpoint.shared_folders import write_sums
from ling_jax.config import ModelConfig
from ling_jax.data import Batch
from ling_jax.distributed.peers import ALONE, Peers
from ling_jax.messages import nearest
from ling_jax.migrate.gqa_to_lightning import KV_HEADS, gqa_to_lightning, hybrid_config
from ling_jax.migrate.qk_fusion import fuse_qk_norm, fused_config, head_squares
from ling_jax.migrate.transmla import PCAS, gqa_to_mla, mla_config
from ling_jax.model.layers import LayerKind
from ling_jax.spec import Params

FORMS = ("gqa", "linear", "fused", "mla")
QK_NORMS = ("fuse", "drop")
RECORDS = "conversion.json"  # file with the records of converted layers
# Settings of running, training and initialisation; every form takes the target's.
RUN_FIELDS = (
    "compute_dtype", "remat", "scan_layers", "lightning_chunk", "loss_chunk", "max_length", "init_std",
    "mtp_loss_weight", "z_loss_weight",
)  # fmt: skip
MIXER_FIELDS = (
    "full_attention", "layer_group_size", "num_norm_groups", "slope_layer_offset", "num_kv_heads", "gqa_qk_norm",
    "q_lora_rank", "kv_lora_rank", "nope_dim", "rope_dim", "v_dim", "rope_theta",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """Options of the conversion. Raises ValueError for an unknown or non-positive value."""

    kv_heads: str = "random"  # new key and value heads: "random" (report §2.1.3) or "repeat"
    pca: str = "complex"  # of rope keys among heads: "complex", or "real" as in TransMLA
    qk_norm: str = "fuse"  # "fuse", or "drop" without the factor, for comparison
    calibration_tokens: int = 16_384  # our choice: ten times the largest rank of the releases
    held_out_tokens: int = 8_192  # for the comparison of layers; our choice
    seed: int = 0  # for new weights

    def __post_init__(self):
        for name, options in (("kv_heads", KV_HEADS), ("pca", PCAS), ("qk_norm", QK_NORMS)):
            if (value := getattr(self, name)) not in options:
                raise ValueError(
                    f"conversion.{name} is {value!r}{nearest(value, options)}; one of {', '.join(options)}"
                )
        for name in ("calibration_tokens", "held_out_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"conversion.{name} is {getattr(self, name)}; it must be positive")


def form_config(source: ModelConfig, target: ModelConfig, form: str) -> ModelConfig:
    """The config of a form between a Ling 2.0 model and a hybrid, with the rope and MTP of the source.

    The target may have MTP modules that the source lacks, as the Ling 2.0 releases do. Raises ValueError if the source
    is no Ling 2.0 model, or the target is another model or too large.
    """
    others = RUN_FIELDS + MIXER_FIELDS + (() if source.mtp_depth else ("mtp_depth",))
    for field in (f.name for f in dataclasses.fields(ModelConfig) if f.compare and f.name not in others):
        if getattr(source, field) != getattr(target, field):
            raise ValueError(
                f"target.{field} is {getattr(target, field)!r}, the source's {getattr(source, field)!r}; a migration "
                "changes only the mixers, so take the source's"
            )
    if target.full_attention != "mla":
        raise ValueError(f"target.full_attention is {target.full_attention!r}; a migration ends with 'mla'")
    source = dataclasses.replace(source, **{field: getattr(target, field) for field in RUN_FIELDS})
    linear = hybrid_config(
        source,
        layer_group_size=target.layer_group_size,
        num_norm_groups=target.num_norm_groups,
        slope_layer_offset=target.slope_layer_offset,
    )
    fused = fused_config(linear)
    return {"gqa": source, "linear": linear, "fused": fused, "mla": mla_config(fused, target)}[form]


def check_calibration(target: ModelConfig, tokens: int) -> None:
    """Raises ValueError if `tokens` are fewer than the ranks of the target's MLA layers."""
    needed = max(target.kv_lora_rank, target.q_lora_rank or 0) if target.full_attention == "mla" else 1
    if tokens < needed:
        raise ValueError(
            f"conversion: {tokens} calibration tokens; ranks of {needed} (kv_lora_rank, q_lora_rank) need at least "
            f"{needed} of them, and several times as many to be well estimated"
        )


def convert_model(
    reader: Reader,
    target: ModelConfig,
    calibration: Sequence[Batch],
    held_out: Sequence[Batch],
    conversion: Conversion,
    folder: Path,
    peers: Peers = ALONE,
) -> list[dict[str, Any]]:
    """Writes the model in the target's form as a Hugging Face folder, with one layer in memory at a time.

    The folder may hold a tokenizer; it gets `RECORDS` and, last, the sums of all files.

    Every layer is calibrated and compared on the inputs that the unconverted model gives it, so that errors of earlier
    layers do not reach it. Several `peers`, which share the folder, divide the layers (`relay.Relay`): each reads,
    converts and writes its own, and the files have the same bytes whatever their number.

    Returns a record for each converted layer, in all processes: number, kinds, "output_error" (relative Frobenius error
    on the held-out batches; None if the output was 0) and for MLA the kept energy ("rope", "latent", "query").
    Raises ValueError with the layer if calibration does not suffice or an output is not finite.
    """
    check_calibration(target, sum(int((rows["segment_ids"] > 0).sum()) for rows in calibration))
    writer = HfWriter(folder, target, _target_dtypes(reader, target), by_layer=True, peers=peers)
    own: list[dict[str, Any]] = []
    for layer in layerwise_forward(reader, [*calibration, *held_out], Relay(peers, folder)):
        params, record = _convert_layer(layer, reader.config, target, calibration, held_out, conversion)
        writer.layer(layer.number, params)
        own += [record] if record else []
        del layer, params  # free this layer before the next is read
    if peers.index == peers.count - 1:  # no process has fewer layers
        for name in TOP:
            writer.top(name, reader.top(name))
    writer.close()
    records = _all_records(own, peers)
    if not peers.index:
        (folder / RECORDS).write_text(json.dumps(records, indent=1))
    write_sums(folder, writer.written_files, peers)
    return records


def _all_records(own: list[dict[str, Any]], peers: Peers) -> list[dict[str, Any]]:
    """The records of all processes, by layer; those of others are printed now, since only process 0 prints."""
    found = peers.gather(own, "records")
    for record in [record for records in found[1:] for record in records]:
        _print_record(record)
    return sorted((record for records in found for record in records), key=lambda record: record["layer"])


def _target_dtypes(reader: Reader, target: ModelConfig) -> dict[str, np.dtype]:
    """{leaf: dtype}: the dtype of the leaf's layers in the source; new leaves take that of their layer's queries."""
    found = {name: reader.dtypes[name] for name in TOP}
    for old, new in zip(layer_leaves(reader.config), layer_leaves(target), strict=True):
        for name, place in new.items():
            like = old[name] if name in old else old["layer/mixer/q" if "layer/mixer/q" in old else "mixer/q"]
            dtype = reader.dtypes[like.leaf]
            found[place.leaf] = np.promote_types(found.get(place.leaf, dtype), dtype)
    return found


def _convert_layer(
    layer: LayerActivations, source: ModelConfig, target: ModelConfig, calibration, held_out, conversion: Conversion
) -> tuple[Params, dict[str, Any]]:
    """(the layer's parameters in the target, its record); the record is {} if the layer does not change."""
    kind = kind_of(target, layer.number)
    if not _changes(layer.kind, kind, source, target):
        return layer.params, {}
    try:
        mixer, kept = _convert_mixer(layer, kind, calibration, source, target, conversion)
    except ValueError as error:
        raise ValueError(f"layer {layer.number}: {error}") from None
    seen = layer._replace(inputs=layer.inputs[len(calibration) :])
    before = mixer_outputs(layer.mixer, seen, held_out, source, layer.kind)
    if not np.isfinite(before).all():
        raise ValueError(f"layer {layer.number}: its output on held-out tokens holds NaN or infinity before conversion")
    off, size = np.linalg.norm(mixer_outputs(mixer, seen, held_out, target, kind) - before), np.linalg.norm(before)
    record = {"layer": layer.number, "from": layer.kind.mixer, "to": kind.mixer}
    record |= {"output_error": float(off / size) if size else None} | kept  # JSON has no infinity
    _print_record(record)
    return layer.with_mixer(mixer), record


def converted_layers(source: ModelConfig, target: ModelConfig) -> list[int]:
    """Numbers of the layers that `convert_model` changes; MTP depths follow the trunk's layers."""
    every = range(source.num_layers + source.mtp_depth)
    return [n for n in every if _changes(kind_of(source, n), kind_of(target, n), source, target)]


def _changes(old: LayerKind, new: LayerKind, source: ModelConfig, target: ModelConfig) -> bool:
    return old.mixer != new.mixer or (old.mixer == "gqa" and source.gqa_qk_norm != target.gqa_qk_norm)


def _convert_mixer(
    layer: LayerActivations,
    kind: LayerKind,
    calibration,
    source: ModelConfig,
    target: ModelConfig,
    conversion: Conversion,
) -> tuple[Params, dict[str, float]]:
    """(new mixer, kept energy by name)."""
    mixer = layer.mixer
    if kind.mixer == "lightning":
        rng = np.random.default_rng([conversion.seed, layer.number])
        return gqa_to_lightning(mixer, rng, source, kv_heads=conversion.kv_heads), {}
    inputs = list(zip(layer.inputs, calibration))  # noqa: B905  the held-out batches follow those of calibration
    if "q_norm" in mixer:
        mixer = _without_norm(mixer, inputs, source, conversion.qk_norm)
    if kind.mixer == "gqa":
        return mixer, {}
    x_ND = np.concatenate([np.asarray(x_BTD)[rows["segment_ids"] > 0] for x_BTD, rows in inputs])
    mixer, kept = gqa_to_mla(mixer, x_ND, source, target, pca=conversion.pca)
    return mixer, kept._asdict()


def _without_norm(mixer: Params, inputs, source: ModelConfig, how: str) -> Params:
    if how == "drop":
        return {name: leaf for name, leaf in mixer.items() if name not in ("q_norm", "k_norm")}
    first, *others = (head_squares(mixer, x_BTD, rows["segment_ids"] > 0) for x_BTD, rows in inputs)
    return fuse_qk_norm(mixer, sum(others, first), source)


def _print_record(record: dict[str, Any]) -> None:
    print(" ".join(f"{name}={_short(value)}" for name, value in record.items()), flush=True)


def _short(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
