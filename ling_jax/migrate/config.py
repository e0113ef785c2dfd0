"""The configuration of a migration: stages that convert the model, train a part of it, or merge checkpoints."""

import dataclasses
import fnmatch
import math
from typing import Any

import jax

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.config_dicts import Rule, check_fields
from ling_jax.messages import nearest
from ling_jax.migrate.convert import FORMS, Conversion, check_calibration, converted_layers, form_config
from ling_jax.model import model_spec
from ling_jax.parallel.context import check_rows
from ling_jax.train.config import (
    GUARDS,
    OPTIMIZER,
    RUN_FIELDS,
    DataConfig,
    LoopConfig,
    MeshConfig,
    OptimizerConfig,
    RowFields,
    check_sequence_length,
    check_sources,
)

# Patterns over the names of parameters (`spec.named_leaves`); `*` matches `/` too.
LIGHTNING_QKV = ("*_lightning_*/mixer/[qkv]", "*_lightning_*/mixer/[qk]_norm")
LIGHTNING_GATE = ("*_lightning_*/mixer/gate", "*_lightning_*/mixer/norm")
ALL_QKV = ("*/mixer/[qkv]", "*_lightning_*/mixer/[qk]_norm")  # fused GQA layers too
EVERYTHING = ("*",)


def mla_patterns(target: ModelConfig) -> tuple[str, ...]:
    """Patterns for the projections and norms of MLA.

    Without a query rank, MLA's query projection is named like Lightning's, so the pattern includes the layer kind.
    """
    mtp = ("mtp/*/mixer/q",) if target.mtp_depth else ()
    queries = ("*/mixer/q_[ab]", "*/mixer/q_a_norm") if target.q_lora_rank else ("*_mla_*/mixer/q", *mtp)
    return (*queries, "*/mixer/kv_*")


# Three MTP depths for speculation (report App. B): a module each, one shared, or one shared and detached.
MTP_SCHEMES = {
    "separate": dict(mtp_depth=3, mtp_shared_depths=0, mtp_detached=False),
    "shared": dict(mtp_depth=1, mtp_shared_depths=3, mtp_detached=False),
    "shared_detached": dict(mtp_depth=1, mtp_shared_depths=3, mtp_detached=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: conversion to `form` if needed, then training of the parameters that match `trains`."""

    name: str
    form: str  # one of `migrate.convert.FORMS`
    trains: tuple[str, ...] = ()  # patterns for parameter names; (): no training
    tokens: int = 0  # upper bound
    recovers: bool = False  # stops at a held-out loss of 1.01 times the source's, measured on rows of the same length
    peak_lr: float = 0.0  # 0: optimizer.peak_lr
    warmup_steps: int = -1  # -1: optimizer.warmup_steps
    router_bias_rate: float = (
        1e-3  # report §2.3.1; 1e-4 in mid-training. Used if `trains` matches every expert bias, else 0
    )
    sequence_length: int = 0  # 0: data.sequence_length; a step keeps its tokens, so longer rows are fewer
    long_share: float = 1.0  # share of long sequences; the others have data.sequence_length and are packed
    context: int = 1  # devices that split every row, taken from mesh.fsdp
    rope_theta: float = 0.0  # 0: unchanged
    mtp: str = ""  # MTP scheme from this stage on (`MTP_SCHEMES`); "": unchanged
    merges: int = 0  # number of last checkpoints of the stage before, train.save_every apart, to average (WSM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageLoop(RowFields):
    """Training settings shared by all stages."""

    eval_every: int = 100  # steps; a stage that recovers is checked as often


@dataclasses.dataclass(frozen=True, kw_only=True)
class MigrateConfig:
    """A whole migration. Raises ValueError if fields or stages do not fit each other."""

    source: str  # workdir or Hugging Face folder of a Ling 2.0 model with its tokenizer
    target: ModelConfig
    stages: tuple[Stage, ...]
    data: DataConfig
    optimizer: OptimizerConfig
    train: StageLoop
    seen_tokens: int = 0  # tokens of this data, seed and length that the source has seen; they are skipped
    conversion: Conversion = dataclasses.field(default_factory=Conversion)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        check_fields(self, RULES)
        check_fields(self, OPTIMIZER)
        if not self.stages:
            raise ValueError("stages is empty; name at least one")
        check_sources(self.data)
        if repeated := {s.name for s in self.stages if sum(t.name == s.name for t in self.stages) > 1}:
            raise ValueError(f"stages: {min(repeated)!r} is the name of two; each needs its own")
        if self.data.tokenizer:
            raise ValueError("data.tokenizer is set; a migration keeps the tokenizer of its source")
        for number, stage in enumerate(self.stages):
            try:
                check_fields(stage, STAGE_RULES)
                _check_stage(self, number, stage)
            except ValueError as error:
                raise ValueError(f"stages[{number}] ({stage.name}): {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun:
    """The training of one stage in the form that `run.loop` takes."""

    stage: Stage
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: LoopConfig
    mesh: MeshConfig


RULES: tuple[Rule, ...] = (
    *RUN_FIELDS,
    (
        ("train.batch_size", "train.log_every", "train.eval_every", "train.eval_batches", "data.sequence_length"),
        lambda x: x > 0,
        "must be positive",
    ),
    (("data.seed", "conversion.seed"), lambda x: 0 <= x < 2**32, "must be 0 to 2^32 - 1"),
    *GUARDS,
    (("seen_tokens",), lambda x: x >= 0, "must not be negative"),
    (("data.held_out_fraction",), lambda x: 0 < x < 1, "must be between 0 and 1"),
)


STAGE_RULES: tuple[Rule, ...] = (
    (
        ("tokens", "sequence_length", "merges", "peak_lr", "rope_theta", "router_bias_rate"),
        lambda x: 0 <= x < math.inf,
        "must not be negative, and finite",
    ),
    (("warmup_steps",), lambda x: x >= -1, "must not be negative, but for -1"),
    (("long_share",), lambda x: 0 < x <= 1, "must be above 0 and at most 1"),
    (("context",), lambda x: x >= 1, "must be positive"),
)


def _check_stage(config: MigrateConfig, number: int, stage: Stage) -> None:
    """The checks of a stage that need no source model."""
    if not stage.name.replace("_", "").isalnum():
        raise ValueError("the name is a folder's; it is letters, digits and _")
    if stage.form not in FORMS:
        raise ValueError(f"form is {stage.form!r}{nearest(stage.form, FORMS)}; one of {', '.join(FORMS)}")
    before = config.stages[number - 1].form if number else FORMS[0]
    if FORMS.index(stage.form) < FORMS.index(before):
        raise ValueError(f"form is {stage.form!r} behind {before!r}; forms come in the order {FORMS}")
    if stage.mtp and stage.mtp not in MTP_SCHEMES:
        raise ValueError(f"mtp is {stage.mtp!r}{nearest(stage.mtp, MTP_SCHEMES)}; one of {', '.join(MTP_SCHEMES)}")
    if stage.mtp and (not stage.trains or stage.form != before or any(s.mtp for s in config.stages[:number])):
        raise ValueError(f"mtp is {stage.mtp!r}; a stage that trains and converts nothing may give it, once")
    if not stage.trains and not stage.merges and stage.form == before:
        raise ValueError("it changes nothing; give it another form, trains or merges")
    if bool(stage.trains) != (stage.tokens > 0):
        raise ValueError(f"tokens is {stage.tokens}; it is positive where the stage trains, else 0")
    if stage.merges:
        _check_merge(config, number, stage)
    _check_rows(config, stage)
    if stage.context > 1 and (config.mesh.fsdp < 1 or config.mesh.fsdp % stage.context):
        raise ValueError(f"context is {stage.context}; it divides mesh.fsdp, which is {config.mesh.fsdp}")
    check_rows(stage_length(config, stage), stage_mesh(config, stage).context)


def _check_merge(config: MigrateConfig, number: int, stage: Stage) -> None:
    if stage.trains:
        raise ValueError("it trains and merges; make it two stages")
    if not number or not config.stages[number - 1].trains:
        raise ValueError("it merges checkpoints, and no stage before it has any")
    before = config.stages[number - 1]
    if stage.form != before.form:
        raise ValueError(f"form is {stage.form!r}; it merges checkpoints of the stage before, whose is {before.form!r}")
    if before.recovers:
        raise ValueError("it merges checkpoints of the stage before, which may end before it has them (recovers)")
    found = stage_steps(config, before) // config.train.save_every  # evenly spaced
    if found < stage.merges:
        raise ValueError(
            f"merges is {stage.merges}; {stage_steps(config, before)} steps of the stage before, with train.save_every "
            f"{config.train.save_every}, leave {found} checkpoints"
        )


def _check_rows(config: MigrateConfig, stage: Stage) -> None:
    length, short = stage_length(config, stage), config.data.sequence_length
    if stage.recovers and not stage.trains:
        raise ValueError("recovers ends a training, and the stage trains nothing")
    for whose, found in (("its own", length), ("the first stage's", stage_length(config, config.stages[0]))):
        if stage.recovers and found != short:
            raise ValueError(f"recovers compares with the source in rows of {short} tokens; {whose} rows have {found}")
    if length % short or (config.train.batch_size * short) % length:
        raise ValueError(
            f"sequence_length is {length}; it is a multiple of data.sequence_length {short}, and a step's "
            f"{config.train.batch_size * short} tokens are whole rows of it"
        )
    if (rows := config.train.batch_size * short // length) % config.train.microbatches:
        raise ValueError(f"train.microbatches {config.train.microbatches} does not divide its {rows} rows")
    if stage.long_share < 1 and length == short:
        raise ValueError(f"long_share is {stage.long_share}; it is below 1 only of long rows")


def stage_length(config: MigrateConfig, stage: Stage) -> int:
    """Tokens of a row of the stage."""
    return stage.sequence_length or config.data.sequence_length


def stage_steps(config: MigrateConfig, stage: Stage) -> int:
    """Upper bound on the optimiser steps of a stage; the tokens of a step do not depend on the row length."""
    return math.ceil(stage.tokens / (config.train.batch_size * config.data.sequence_length))


def stage_models(config: MigrateConfig, source: ModelConfig) -> list[ModelConfig]:
    """The config of the model after each stage's conversion.

    The last is the target, except for rope's theta if no stage sets it. Raises ValueError with stage and numbers if
    source, target, patterns, calibration or lengths do not fit.
    """
    models, theta, mtp = [], source.rope_theta, {}
    lacks_mtp = not source.mtp_depth and config.target.mtp_depth > 0
    for number, stage in enumerate(config.stages):
        theta = stage.rope_theta or theta
        mtp = MTP_SCHEMES.get(stage.mtp, mtp)
        if stage.mtp and source.mtp_depth != 1:
            found = f"the source has {source.mtp_depth} MTP modules; it is made from one"
            raise ValueError(f"stages[{number}] ({stage.name}): mtp is {stage.mtp!r}; {found}")
        model = dataclasses.replace(form_config(source, config.target, stage.form), rope_theta=theta, **mtp)
        if lacks_mtp and _trains_mtp(stage, with_mtp := dataclasses.replace(model, mtp_depth=config.target.mtp_depth)):
            model, mtp, lacks_mtp = with_mtp, {"mtp_depth": config.target.mtp_depth}, False
        before = models[-1] if models else form_config(source, config.target, FORMS[0])
        if converted_layers(before, model):
            check_calibration(model, config.conversion.calibration_tokens)
        try:
            check_sequence_length(stage_length(config, stage), model)
            if stage.trains:
                trainable_mask(model, stage.trains)
        except ValueError as error:
            raise ValueError(f"stages[{number}] ({stage.name}): {error}") from None
        models.append(model)
    if lacks_mtp:
        raise ValueError(
            f"target.mtp_depth is {config.target.mtp_depth}, the source has no MTP, and no stage trains all of it, as "
            "trains=('*',) does where target.mtp_loss_weight is not 0; add such a stage, where it will be new, or set "
            "target.mtp_depth to 0"
        )
    return models


def _trains_mtp(stage: Stage, model: ModelConfig) -> bool:
    """Whether the stage trains every parameter of new MTP modules; a part would leave the others random."""
    names = [name for name in specs.named_leaves(model_spec(model)) if name.startswith("mtp/")]
    return bool(model.mtp_loss_weight) and all(matches(name, stage.trains) for name in names)


def trainable_mask(model: ModelConfig, patterns: tuple[str, ...]) -> Any:
    """A tree of bools over the parameters: whether gradients train a leaf whose name matches `patterns`.

    Raises ValueError for a pattern without a match, and if no leaf is trained.
    """
    spec = model_spec(model)
    names = specs.named_leaves(spec)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = nearest(pattern, names)
            raise ValueError(f"trains: {pattern!r} matches none of the {len(names)} parameters{near}")
    mask = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.trainable and matches(specs.path_name(path), patterns),
        spec,
        is_leaf=lambda x: isinstance(x, specs.Leaf),
    )
    if not any(jax.tree.leaves(mask)):
        raise ValueError(
            f"trains is {patterns}; gradients train none of that (experts' biases move by rate, and MTP stays as it is "
            "where mtp_loss_weight is 0)"
        )
    return mask


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a parameter name matches one of the patterns; `*` matches `/` too."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def stage_run(config: MigrateConfig, number: int, model: ModelConfig) -> StageRun:
    """The training of a stage. A stage without training gets one step, which never runs."""
    stage = config.stages[number]
    length = stage_length(config, stage)
    rows = config.train.batch_size * config.data.sequence_length // length
    loop = dataclasses.asdict(config.train) | {"batch_size": rows}
    if number + 1 < len(config.stages):
        loop["keep"] = max(loop["keep"], config.stages[number + 1].merges)
    optimizer = dataclasses.replace(
        config.optimizer,
        peak_lr=stage.peak_lr or config.optimizer.peak_lr,
        warmup_steps=config.optimizer.warmup_steps if stage.warmup_steps < 0 else stage.warmup_steps,
    )
    biases = [name for name, leaf in specs.named_leaves(model_spec(model)).items() if leaf.role == "router_bias"]
    rate = stage.router_bias_rate if biases and all(matches(name, stage.trains) for name in biases) else 0.0
    return StageRun(
        stage=stage,
        model=model,
        data=dataclasses.replace(config.data, sequence_length=length),
        optimizer=optimizer,
        train=LoopConfig(steps=max(stage_steps(config, stage), 1), router_bias_rate=rate, **loop),
        mesh=stage_mesh(config, stage),
    )


def stage_mesh(config: MigrateConfig, stage: Stage) -> MeshConfig:
    """The mesh of a stage: `context` devices move from `fsdp` to the context axis."""
    mesh = config.mesh
    if stage.context == 1:
        return mesh
    return dataclasses.replace(mesh, fsdp=mesh.fsdp // stage.context, context=mesh.context * stage.context)
