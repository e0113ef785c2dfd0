"""What `launch.compile` compiles: the model and the config of a run, from any stage's config file."""

from typing import Any, NamedTuple

from ling_jax.align.sft import SftConfig
from ling_jax.checkpoint.folder import model_sizes
from ling_jax.config import ModelConfig
from ling_jax.migrate.config import MigrateConfig, stage_models, stage_run, trainable_mask
from ling_jax.migrate.dry_run import source_config
from ling_jax.rl.config import RLConfig
from ling_jax.run.start import changed_model, with_sizes
from ling_jax.train.config import DataConfig, PretrainConfig, Source, from_dict

STAGES = (PretrainConfig, MigrateConfig, SftConfig, RLConfig)


class Wanted(NamedTuple):
    """A run whose programs are compiled."""

    config: PretrainConfig | RLConfig
    model: ModelConfig
    trainable: Any = None  # a tree of bools of trained parameters; None: all


def read_wanted(values: dict[str, Any], stage: str) -> Wanted:
    """The run of a config file's values; `stage` is the name of a migration's stage, "" for other configs.

    A path to start from may be the name of a model, since no weights are read. Raises ValueError and OSError.
    """
    if "stages" in values:
        return _of_migration(from_dict(MigrateConfig, values), stage)
    if stage:
        raise ValueError(f"--stage={stage}: the config is no migration's")
    if "rollout" in values:
        config = from_dict(RLConfig, values)
        return Wanted(config, changed_model(model_sizes(config.start_from), config.model))
    if "sources" in values:
        config = from_dict(SftConfig, values)
        return _of_training(config, model_sizes(config.start_from))
    config = with_sizes(from_dict(PretrainConfig, values))
    return Wanted(config, config.model)


def _of_migration(config: MigrateConfig, stage: str) -> Wanted:
    numbers = {stage.name: number for number, stage in enumerate(config.stages) if stage.trains}
    if stage not in numbers:
        raise ValueError(f"--stage is {stage!r}; the stages that train are {', '.join(numbers)}")
    number = numbers[stage]
    model = stage_models(config, source_config(config))[number]
    run = stage_run(config, number, model)
    return _of_training(run, model)._replace(trainable=trainable_mask(model, run.stage.trains))


def _of_training(run: Any, model: ModelConfig) -> Wanted:
    config = PretrainConfig(
        model=model,
        # Of the rows a program knows the length alone.
        data=DataConfig(sources=(Source(kind="python"),), sequence_length=run.data.sequence_length),
        optimizer=run.optimizer,
        train=run.train,
        mesh=run.mesh,
    )
    return Wanted(config, model)
