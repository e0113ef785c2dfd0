"""Whole models between the forms of a migration, layer by layer from disk to disk.

Forms, in this order: "gqa" (Ling 2.0), "linear" (Lightning layers, the others GQA), "fused" (the same without QK-norm
in the GQA layers), "mla" (the hybrid). A layer's conversion follows from its kinds in the two configs, so a step may
leave forms out: from "gqa" to "mla" is everything at once.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.layerwise import LayerActivations, layerwise_forward, outputs
from ling_jax.checkpoint.parts import TOP, Reader, layer_places
from ling_jax.config import ModelConfig, nearest
from ling_jax.data import Batch
from ling_jax.migrate.qk_fusion import fuse_qk_norm, fused_config, head_squares
from ling_jax.migrate.transmla import PCAS, gqa_to_mla, mla_config
from ling_jax.migrate.widen import KV_HEADS, gqa_to_lightning, hybrid_config
from ling_jax.model.layers import Kind, layer_kind
from ling_jax.spec import Params

FORMS = ("gqa", "linear", "fused", "mla")
QK_NORMS = ("fuse", "drop")
# How a model is run and trained, and what new weights are drawn with: the target's, in all forms.
RUN_FIELDS = (
    "compute_dtype", "remat", "scan_layers", "lightning_chunk", "loss_chunk", "max_length", "init_std",
    "mtp_loss_weight", "z_loss_weight",
)  # fmt: skip
MIXER_FIELDS = (
    "softmax", "layer_group_size", "num_norm_groups", "slope_layer_offset", "num_kv_heads", "gqa_qk_norm",
    "q_lora_rank", "kv_lora_rank", "nope_dim", "rope_dim", "v_dim", "rope_theta",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """How layers are converted."""

    kv_heads: str = "random"  # new key and value heads, or "repeat" (report §2.1.3: random)
    pca: str = "complex"  # of rope keys among heads, or "real" as TransMLA
    qk_norm: str = "fuse"  # or "drop": without the factor, for comparison
    calibration_tokens: int = 16_384  # our choice: ten times the largest rank of the releases
    held_out_tokens: int = 8_192  # on which layers are compared; our choice
    seed: int = 0  # of new weights

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
    """The config of a form between a Ling 2.0 model and a hybrid; rope stays the source's, and so does MTP.

    The target may have MTP where the source has none, as its releases do not. Raises ValueError where the source is no
    Ling 2.0 model, or the target another model or too large for it.
    """
    others = RUN_FIELDS + MIXER_FIELDS + (() if source.mtp_depth else ("mtp_depth",))
    for field in (f.name for f in dataclasses.fields(ModelConfig) if f.compare and f.name not in others):
        if getattr(source, field) != getattr(target, field):
            raise ValueError(
                f"target.{field} is {getattr(target, field)!r}, the source's {getattr(source, field)!r}; a migration "
                "changes only the mixers, so take the source's"
            )
    if target.softmax != "mla":
        raise ValueError(f"target.softmax is {target.softmax!r}; a migration ends with 'mla'")
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
    """Raises ValueError where so many tokens are too few for the ranks of the target's MLA layers."""
    needed = max(target.kv_lora_rank, target.q_lora_rank or 0) if target.softmax == "mla" else 1
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
) -> list[dict[str, Any]]:
    """Writes the model in the target's form as a Hugging Face folder, holding one layer at a time.

    All layers, converted or not, are calibrated and compared with the inputs that the model before gives them: what a
    layer upstream becomes does not reach them. Returns a record of each converted layer: its number and kinds,
    "output_error" on the held-out batches (None where the output before is 0), and the energy kept where it became MLA
    ("rope", "latent", "query"). Raises ValueError, naming the layer, on calibration that does not do and on outputs
    that are not finite.
    """
    check_calibration(target, sum(int((rows["segment_ids"] > 0).sum()) for rows in calibration))
    writer, records = HfWriter(folder, target, _target_dtypes(reader, target)), []
    for name in TOP:
        writer.top(name, reader.top(name))
    for layer in layerwise_forward(reader, [*calibration, *held_out]):
        params, record = _convert_layer(layer, reader.config, target, calibration, held_out, conversion)
        writer.layer(layer.number, params)
        records += [record] if record else []
        del layer, params  # or this layer would be held while the next is read
    writer.close()
    return records


def _target_dtypes(reader: Reader, target: ModelConfig) -> dict[str, np.dtype]:
    """Of every leaf: those of its layers in the source, new ones as the queries of their layer."""
    found = {name: reader.dtypes[name] for name in TOP}
    for old, new in zip(layer_places(reader.config), layer_places(target), strict=True):
        for name, place in new.items():
            like = old[name] if name in old else old["layer/mixer/q" if "layer/mixer/q" in old else "mixer/q"]
            dtype = reader.dtypes[like.leaf]
            found[place.leaf] = np.promote_types(found.get(place.leaf, dtype), dtype)
    return found


def _convert_layer(
    layer: LayerActivations, source: ModelConfig, target: ModelConfig, calibration, held_out, conversion: Conversion
) -> tuple[Params, dict[str, Any]]:
    """(the layer's parameters in the target, its record; {} where it stays as it is)."""
    kind = kind_of(target, layer.number)
    if not _changes(layer.kind, kind, source, target):
        return layer.params, {}
    try:
        mixer, kept = _convert_mixer(layer, kind, calibration, source, target, conversion)
    except ValueError as error:
        raise ValueError(f"layer {layer.number}: {error}") from None
    seen = layer._replace(inputs=layer.inputs[len(calibration) :])
    before = outputs(layer.mixer, seen, held_out, source, layer.kind)
    if not np.isfinite(before).all():
        raise ValueError(f"layer {layer.number}: its output on held-out tokens holds NaN or infinity before conversion")
    off, size = np.linalg.norm(outputs(mixer, seen, held_out, target, kind) - before), np.linalg.norm(before)
    record = {"layer": layer.number, "from": layer.kind.mixer, "to": kind.mixer}
    record |= {"output_error": float(off / size) if size else None} | kept  # no JSON has infinity
    print(" ".join(f"{name}={_short(value)}" for name, value in record.items()), flush=True)
    return layer.with_mixer(mixer), record


def converted_layers(source: ModelConfig, target: ModelConfig) -> list[int]:
    """Numbers of the layers, MTP depths behind the others, that `convert_model` changes."""
    every = range(source.num_layers + source.mtp_depth)
    return [n for n in every if _changes(kind_of(source, n), kind_of(target, n), source, target)]


def kind_of(config: ModelConfig, number: int) -> Kind:
    """The kind of a layer; MTP depths are layers behind the others."""
    return layer_kind(config, number) if number < config.num_layers else Kind(config.softmax, "moe")


def _changes(old: Kind, new: Kind, source: ModelConfig, target: ModelConfig) -> bool:
    return old.mixer != new.mixer or (old.mixer == "gqa" and source.gqa_qk_norm != target.gqa_qk_norm)


def _convert_mixer(
    layer: LayerActivations, kind: Kind, calibration, source: ModelConfig, target: ModelConfig, conversion: Conversion
) -> tuple[Params, dict[str, float]]:
    """(the new mixer, energy kept by name)."""
    mixer = layer.mixer
    if kind.mixer == "lightning":
        rng = np.random.default_rng([conversion.seed, layer.number])
        return gqa_to_lightning(mixer, rng, source, kv_heads=conversion.kv_heads), {}
    inputs = list(zip(layer.inputs, calibration))  # noqa: B905  held-out batches come behind those of calibration
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


def _short(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
