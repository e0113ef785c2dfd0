"""A dry run of a migration: stages, tokens, memory, disk and the share of each host, computed from configs alone."""

import math
from typing import Any

import jax
import numpy as np

from ling_jax import spec as specs
from ling_jax.checkpoint.folder import model_sizes
from ling_jax.checkpoint.index import is_workdir
from ling_jax.checkpoint.layerwise import kind_of
from ling_jax.config import ModelConfig
from ling_jax.messages import count_text, size_text
from ling_jax.migrate.config import MigrateConfig, stage_models, stage_run, trainable_mask
from ling_jax.migrate.convert import converted_layers, form_config
from ling_jax.migrate.host_shares import MASTER_BYTES, HostShare, conversion_share, merge_share, training_share
from ling_jax.model import model_spec
from ling_jax.model.flops import flops_per_token
from ling_jax.paths import as_path


def source_config(config: MigrateConfig) -> ModelConfig:
    """The source's config, from its folder or a named model.

    Ling 2.0 was trained with MTP and released without it, so a named model gets the target's MTP depth.
    """
    return model_sizes(config.source, mtp_depth=config.target.mtp_depth)


def stored_itemsize(config: MigrateConfig, source: ModelConfig) -> int:
    """Bytes of a stored weight of the source: float32 in a run's workdir, else as it computes."""
    workdir = as_path(config.source).exists() and is_workdir(as_path(config.source))
    return MASTER_BYTES if workdir else np.dtype(source.compute_dtype).itemsize


def dry_run(config: MigrateConfig, source: ModelConfig, hosts: int = 1) -> list[dict[str, Any]]:
    """A record for each stage: conversions, trained parameters, tokens, steps, FLOPs, memory and checkpoints in bytes.

    "state_bytes" is the training state of all devices together; "step_bytes" adds the gradients, without activations.
    "flops" assumes that everything is trained. "shares" are those of the busiest of `hosts` in what the stage does.
    Raises ValueError like `prepare_plan` if sizes do not fit.
    """
    records, before, itemsize = [], form_config(source, config.target, "gqa"), stored_itemsize(config, source)
    for number, model in enumerate(stage_models(config, source)):
        stage, run = config.stages[number], stage_run(config, number, model)
        leaves = specs.named_leaves(model_spec(model))
        sizes = [math.prod(leaf.shape) for leaf in leaves.values()]
        mask = jax.tree.leaves(trainable_mask(model, stage.trains)) if stage.trains else [False] * len(sizes)
        chosen = sum(size for size, keep in zip(sizes, mask, strict=True) if keep)
        step_tokens = run.train.batch_size * run.data.sequence_length
        steps = run.train.steps if stage.trains else 0
        state = MASTER_BYTES * (sum(sizes) + 2 * chosen)
        whole, rest = divmod(steps, run.train.save_every)
        shares: dict[str, HostShare] = {}
        if converted_layers(before, model):
            shares["conversion"] = conversion_share(config, before, model, itemsize, hosts)
        if stage.trains:
            shares["training"] = training_share(model, run.mesh, itemsize, state, hosts)
        if stage.merges:
            shares["merge"] = merge_share(model, stage.merges, hosts)
        records.append(
            {
                "stage": f"{number}_{stage.name}",
                "form": stage.form,
                "converts": _conversions(before, model),
                "parameters": sum(sizes),
                "trained_parameters": chosen,
                "trains": list(stage.trains),
                "sequence_length": run.data.sequence_length,
                "long_share": stage.long_share,
                "rope_theta": model.rope_theta,
                "batch_size": run.train.batch_size,
                "steps": steps,
                "tokens": steps * step_tokens,
                "flops": steps * step_tokens * flops_per_token(model, run.data.sequence_length),
                "state_bytes": state,
                "step_bytes": state + MASTER_BYTES * chosen,
                "checkpoint_bytes": state if stage.trains else MASTER_BYTES * sum(sizes),
                "checkpoints": min(run.train.keep, whole) + bool(rest) if stage.trains else 1,
                "hosts": hosts,
                "shares": shares,
            }
        )
        before, itemsize = model, MASTER_BYTES if stage.trains or stage.merges else itemsize
    return records


def _conversions(before: ModelConfig, model: ModelConfig) -> dict[str, int]:
    """{"gqa -> lightning": number of layers, …}."""
    counts: dict[str, int] = {}
    for layer in converted_layers(before, model):
        kinds = [kind_of(config, layer).mixer for config in (before, model)]
        name = " -> ".join(kinds) if kinds[0] != kinds[1] else f"{kinds[0]} QK-norm fused"
        counts[name] = counts.get(name, 0) + 1
    return counts


def as_text(records: list[dict[str, Any]]) -> str:
    """The records as text: a paragraph for each stage, then the totals."""
    lines = []
    for r in records:
        lines.append(f"{r['stage']}: {r['form']}, {count_text(r['parameters'])} parameters")
        if r["converts"]:
            lines.append("  converts  " + ", ".join(f"{count} layers {name}" for name, count in r["converts"].items()))
        if r["steps"]:
            share = r["trained_parameters"] / r["parameters"]
            long = "" if r["long_share"] == 1 else f", {r['long_share']:.0%} of sequences that long"
            lines += [
                f"  trains    {', '.join(r['trains'])}: {count_text(r['trained_parameters'])} ({share:.1%})",
                f"  rows      {r['batch_size']} of {r['sequence_length']} tokens{long}; rope theta {r['rope_theta']:g}",
                f"  budget    {count_text(r['tokens'])} tokens in {r['steps']} steps, at most {r['flops']:.2e} FLOP",
            ]
        state, with_gradients = size_text(r["state_bytes"]), size_text(r["step_bytes"])
        lines += [
            f"  memory    {state} of state on all devices, {with_gradients} with gradients",
            f"  disk      {r['checkpoints']} checkpoints of {size_text(r['checkpoint_bytes'])}",
        ]
        of = "one host" if r["hosts"] == 1 else f"each of {r['hosts']} hosts"
        lines += [f"  hosts     {of} at most: {work} {share}" for work, share in r["shares"].items()]
    tokens, flops = (sum(r[name] for r in records) for name in ("tokens", "flops"))
    disk = size_text(disk_bytes(records))
    lines.append(f"in all: {count_text(tokens)} tokens, at most {flops:.2e} FLOP, {disk} of disk")
    return "\n".join(lines)


def disk_bytes(records: list[dict[str, Any]]) -> int:
    """Of the models that the stages leave, in all."""
    checkpoints = sum(r["checkpoints"] * r["checkpoint_bytes"] for r in records)
    return checkpoints + sum(MASTER_BYTES * r["parameters"] for r in records if r["converts"] and r["steps"])
