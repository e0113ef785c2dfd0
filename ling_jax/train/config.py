"""The config of a pre-training run: frozen dataclasses, checked as they are made."""

import dataclasses
import math
import typing
from typing import Any

from ling_jax.config import ModelConfig, Yarn
from ling_jax.config_dicts import Rule, check_fields
from ling_jax.config_dicts import from_dict as from_dict
from ling_jax.config_dicts import to_config_dict as to_config_dict
from ling_jax.data.sources import Source as DataSource
from ling_jax.data.sources import source_from_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One source of documents (ling_jax.data.sources) and its share of the mixture."""

    kind: str  # "text", "jsonl", "parquet", "tokens", "python" or "docstrings"
    path: str = ""  # a file, a folder or a glob; gzipped text and JSON lines are read too
    field: str = "text"  # of JSON lines and parquet
    separator: str = ""  # splits text files into documents ("\\n" is any line end); "": one a file
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    sources: tuple[Source, ...]
    sequence_length: int
    tokenizer: str = ""  # a folder or file; "": a BPE of the model's vocabulary is trained on the sources
    folder: str = ""  # of the tokenised index; "": `data` in the workdir
    held_out_fraction: float = 0.02  # of documents, chosen by a hash; of few documents the last, of one its last part
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW; the constants are of the Ling 2.0 report §3.2."""

    peak_lr: float
    schedule: str = "wsm"  # warm-up, then constant (report §2.3.1); or "cosine"
    warmup_steps: int = 2000
    final_lr_fraction: float = 0.1  # where the cosine ends; our choice
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFields:
    """The fields of `train` that the runs of all stages have."""

    microbatches: int = 1  # of a step; in reinforcement learning at most so many, since answers are packed
    seed: int = 0
    max_nonfinite_steps: int = 10  # the run stops after this many steps that changed nothing: not finite, or empty
    hang_seconds: float = 1800.0  # without a finished step the run ends (run/watchdog.py; our choice); 0: never
    eval_every: int = 0  # 0: at the end only, in reinforcement learning also at the start
    save_every: int = 100
    keep: int = 2  # checkpoints
    wandb: str = ""  # a W&B project that gets the metrics, too (pip install wandb); "": none


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFields(RunFields):
    """The fields of `train` that the runs on rows of tokens have."""

    batch_size: int  # rows of a step, over all hosts
    spike_sigmas: float = 0.0  # steps this far above the last ones are skipped (train/spikes.py); 0: none, 6: OLMo 2
    spike_window: int = 128  # last steps that a step is compared with, as in OLMo 2
    log_every: int = 10
    eval_batches: int = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(RowFields):
    steps: int
    router_bias_rate: float = 1e-3  # report §2.3.1; 1e-4 in mid-training
    profile_step: int = 0  # the step that `--profile` traces from; 0: the 10th of this start


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each axis of the mesh; -1: all that are left."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1  # rows are split: 2 · context divides their length
    tensor: int = 1


class RowsConfig(typing.Protocol):
    """Config of rows of tokens, from any kind of data."""

    sequence_length: int
    seed: int


class TrainingConfig(typing.Protocol):
    """The config fields that every run of `ling_jax.run.loop` has, whatever its data are."""

    data: RowsConfig
    optimizer: OptimizerConfig
    train: LoopConfig
    mesh: MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelChanges:
    """How a run computes and trains the model that it starts from: fields of `ModelConfig`; None keeps that model's.

    The shapes of parameters depend on none of these fields.
    """

    max_length: int | None = None
    rope_theta: float | None = None
    rope_scaling: Yarn | None = None
    mtp_loss_weight: float | None = None
    mtp_shared_depths: int | None = None
    mtp_detached: bool | None = None
    z_loss_weight: float | None = None
    compute_dtype: str | None = None
    remat: str | None = None
    scan_layers: bool | None = None
    lightning_chunk: int | None = None
    loss_chunk: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A run from random parameters, or from the model of `start_from` with the changes of `model`.

    A whole ModelConfig beside `start_from` must describe that model; its fields of `ModelChanges` are the changes.
    """

    model: ModelConfig | ModelChanges = ModelChanges()
    # A run's workdir or a Hugging Face folder. Its tokenizer is the run's; a folder without one needs data.tokenizer.
    start_from: str | None = None
    data: DataConfig
    optimizer: OptimizerConfig
    train: LoopConfig
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        check_config(self)


# The fields that may differ between a run and its resumption: its length, what it logs and keeps, which steps it skips,
# and on which devices and in which order it computes the same sums (which changes the last bits only). A change of any
# other field makes it another run.
RESUMABLE_FIELDS = (  # of RunFields
    "train.steps", "train.eval_every", "train.save_every", "train.keep", "train.max_nonfinite_steps",
    "train.hang_seconds", "train.wandb",
)  # fmt: skip
RESUMABLE = (
    *RESUMABLE_FIELDS, "train.log_every", "train.eval_batches", "train.spike_sigmas", "train.spike_window",
    "train.profile_step", "mesh", "model.remat", "model.scan_layers", "data.folder", "samples",
    "stage.context",  # of a migration's stage: a part of its mesh
)  # fmt: skip


RUN_FIELDS: tuple[Rule, ...] = (
    (
        ("train.microbatches", "train.save_every", "train.keep", "train.max_nonfinite_steps"),
        lambda x: x > 0,
        "must be positive",
    ),
    (("train.seed", "train.eval_every"), lambda x: x >= 0, "must not be negative"),
    (("train.seed",), lambda x: x < 2**32, "must be below 2^32"),
    (("train.hang_seconds",), lambda x: x == 0 or 1 <= x < math.inf, "must be 0 (no watchdog), or at least 1"),
)
GUARDS: tuple[Rule, ...] = (
    (("train.spike_sigmas",), lambda x: 0 <= x < math.inf, "must not be negative, and finite; 0 skips nothing"),
    (("train.spike_window",), lambda x: x >= 8, "must be at least 8: a median of fewer steps says little"),
)
TRAINING: tuple[Rule, ...] = (
    *RUN_FIELDS,
    (
        ("data.seed", "train.router_bias_rate", "train.eval_batches", "train.profile_step"),
        lambda x: x >= 0,
        "must not be negative",
    ),
    (("train.steps", "train.batch_size", "train.log_every"), lambda x: x > 0, "must be positive"),
    (("data.seed",), lambda x: x < 2**32, "must be below 2^32"),
    *GUARDS,
    (("data.held_out_fraction",), lambda x: 0 < x < 1, "must be between 0 and 1"),
)  # fmt: skip
OPTIMIZER: tuple[Rule, ...] = (
    (("optimizer.peak_lr",), lambda x: 0 < x < math.inf, "must be positive and finite"),
    (("optimizer.clip_norm",), lambda x: x > 0, "must be positive; infinity clips nothing"),
    (
        ("optimizer.warmup_steps", "optimizer.eps", "optimizer.weight_decay", "optimizer.final_lr_fraction"),
        lambda x: 0 <= x < math.inf,
        "must not be negative, and finite",
    ),
    (("optimizer.b1", "optimizer.b2"), lambda x: 0 <= x < 1, "must be at least 0 and below 1"),
    (("optimizer.schedule",), lambda x: x in ("wsm", "cosine"), "must be 'wsm' or 'cosine'"),
)


def check_config(config: PretrainConfig) -> None:
    """Raises ValueError on values that cannot train; it names the field, the value and what is expected."""
    check_training(config)
    if config.start_from == "":
        raise ValueError("start_from is empty; name a run's workdir or a Hugging Face folder, or leave it out")
    if isinstance(config.model, ModelConfig):
        check_sequence_length(config.data.sequence_length, config.model)
    elif config.start_from is None:
        raise ValueError("model has no sizes; give a whole model, or name one to start from in start_from")
    check_sources(config.data)
    for i, source in enumerate(config.data.sources):
        if source.kind == "tokens" and not config.data.tokenizer and config.start_from is None:
            raise ValueError(f"data.sources[{i}] is tokenised already; name its tokenizer in data.tokenizer")


def check_training(config: TrainingConfig) -> None:
    """`check_config` of the fields that every run has."""
    train = config.train
    check_fields(config, TRAINING)
    check_optimizer(config)
    if train.batch_size % train.microbatches:
        raise ValueError(f"train.microbatches {train.microbatches} does not divide train.batch_size {train.batch_size}")


def check_optimizer(config: Any) -> None:
    """`check_config` of `config.optimizer`."""
    check_fields(config, OPTIMIZER)


def check_sequence_length(length: int, model: ModelConfig) -> None:
    """Raises ValueError where rows of `length` tokens are shorter than 2 or longer than the model's context."""
    if not 2 <= length <= model.max_length:
        raise ValueError(
            f"data.sequence_length is {length}; the model's context, model.max_length, is {model.max_length} "
            "(and a row has at least 2 tokens)"
        )


def check_sources(data: DataConfig) -> None:
    """Raises ValueError where there is no source, or one that cannot be opened or has no positive weight."""
    if not data.sources:
        raise ValueError("data.sources is empty; name at least one source, such as {'kind': 'python'}")
    for i, source in enumerate(data.sources):
        if not 0 < source.weight < math.inf:
            raise ValueError(f"data.sources[{i}].weight is {source.weight}; it must be positive and finite")
        try:
            open_source(source)
        except ValueError as error:
            raise ValueError(f"data.sources[{i}]: {error}") from None


def open_source(source: Source) -> DataSource:
    """The source of `ling_jax.data` that this config describes. Raises ValueError where its kind is unknown."""
    fields = dataclasses.asdict(source)
    del fields["weight"]
    return source_from_config(fields)
