"""Continued pre-training: a run that starts from the parameters of another model, with new data and optimiser."""

import dataclasses
from typing import Any

from etils import epath

from ling_jax import data
from ling_jax.checkpoint.folder import ModelFolder, model_sizes
from ling_jax.config import ModelConfig
from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.train.config import ModelChanges, PretrainConfig, check_sequence_length

CHANGEABLE = tuple(field.name for field in dataclasses.fields(ModelChanges))
# Fields in which another value makes another model. `init_std` is none of them: no parameter is drawn.
FIXED = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.compare and f.name not in (*CHANGEABLE, "init_std"))
MAX_NAMED = 4  # differences in an error


def with_model(config: PretrainConfig, found: ModelConfig, where: epath.PathLike) -> PretrainConfig:
    """The config with the model `found` of the path `where`, and with the config's own changes to it.

    Raises ValueError where the config describes another model, or has longer rows than the model's context.
    """
    if isinstance(config.model, ModelConfig):
        _check_same_model(config.model, found, where)
        changes = {name: getattr(config.model, name) for name in CHANGEABLE}
        model = dataclasses.replace(found, **changes)
    else:
        model = changed_model(found, config.model)
    check_sequence_length(config.data.sequence_length, model)
    return dataclasses.replace(config, model=model)


def changed_model(found: ModelConfig, changes: ModelChanges) -> ModelConfig:
    """The model with the changes that are not None."""
    given = {name: value for name in CHANGEABLE if (value := getattr(changes, name)) is not None}
    return dataclasses.replace(found, **given)


def _check_same_model(wanted: ModelConfig, found: ModelConfig, where) -> None:
    differ = [name for name in FIXED if getattr(wanted, name) != getattr(found, name)]
    if not differ:
        return
    shown = [
        f"model.{name} is {getattr(wanted, name)!r}, there {getattr(found, name)!r}" for name in differ[:MAX_NAMED]
    ]
    more = f" and {len(differ) - MAX_NAMED} more" if len(differ) > MAX_NAMED else ""
    raise ValueError(
        f"the config's model is another one than that of {where}: {'; '.join(shown)}{more}; take a config that gives "
        "no sizes, such as configs/pretrain/continue_tiny.py, or name another start_from"
    )


def with_sizes(config: PretrainConfig) -> PretrainConfig:
    """`with_model` for plans, where `start_from` may also be the name of a model; as it is without `start_from`.

    Raises as `open_model` and `with_model`.
    """
    start = config.start_from
    if start is None:
        return config
    return with_model(config, model_sizes(start, tokenizer=config.data.tokenizer), start)


def check_tokenizer(named: str, start: ModelFolder) -> None:
    """Raises ValueError where a config names another tokenizer than the model's own ("": the model's)."""
    if named and tokenizer_digest(data.load_tokenizer(named)) != tokenizer_digest(start.tokenizer):
        raise ValueError(
            f"data.tokenizer is {named}, and {start.path} was trained with another one; leave data.tokenizer empty, "
            "which takes the model's own"
        )


def start_line(path: str, start: ModelFolder, model: ModelConfig) -> str:
    """A line of output: the folder and step of the parameters, and the fields that the run changes."""

    def described(name: str) -> str:
        return f"{name} is {_short(getattr(model, name))} (there {_short(getattr(start.config, name))})"

    step = "" if start.step is None else f", step {start.step}"
    changes = [described(name) for name in CHANGEABLE if getattr(model, name) != getattr(start.config, name)]
    return f"starts from {path}{step}: " + (", ".join(changes) or "the model is as there")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
