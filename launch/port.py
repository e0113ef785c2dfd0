"""Hugging Face folder <-> Orbax checkpoint.

    python -m launch.port --source=Ling-2.6-flash --target=runs/flash --dtype=bfloat16
    python -m launch.port --source=runs/demo/pretrain --target=exported

A source with *.safetensors becomes a workdir (checkpoints/0 and tokenizer/), one with checkpoints/ becomes a Hugging
Face folder. All files that are neither weights nor config.json go along, and an export gets what it lacks
(docs/checkpoints.md). FP8 weights become those of the config's dtype.
"""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from launch.flags import run_program, usage_errors
from ling_jax.checkpoint import load_hf, orbax, write_hf
from ling_jax.checkpoint.folder import check_model_folder, open_model
from ling_jax.checkpoint.index import is_workdir
from ling_jax.checkpoint.side_files import copy_side_files, fill_in
from ling_jax.config import ModelConfig
from ling_jax.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from ling_jax.files import new_folder

SOURCE = flags.DEFINE_string("source", None, "a Hugging Face folder or a run's workdir", required=True)
TARGET = flags.DEFINE_string("target", None, "a folder that is not there yet", required=True)
DTYPE = flags.DEFINE_enum("dtype", None, ["bfloat16", "float32"], "of the target; as stored if not given")
STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoints; the newest if not given")


def main() -> None:
    source, target, start = Path(SOURCE.value).expanduser(), Path(TARGET.value).expanduser(), time.monotonic()
    with usage_errors():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target} exists and is not empty; name a new folder")
        with new_folder(target) as partial:  # it comes first: a name that cannot be is refused before the work
            params = export(source, partial) if is_workdir(source) else ingest(source, partial)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{size / 1e6:.2f}M parameters in {time.monotonic() - start:.1f} s: {source} -> {target}")


def export(source: Path, target: Path):
    """Fills an empty folder with a workdir's model in Hugging Face's format; returns the parameters as stored."""
    beside = source / "tokenizer"
    model = open_model(source, step=STEP.value) if (beside / TOKENIZER_FILE).exists() else None
    params, config = orbax.load_params(source / "checkpoints", STEP.value)
    config = in_dtype(config)
    write_hf(cast(params), config, target)
    copy_side_files(beside, target)
    fill_in(target, config, model and model.tokenizer, chat=model is not None and model.is_chat)
    return params


def ingest(source: Path, target: Path):
    """Fills an empty folder with a Hugging Face folder's model as a workdir; returns the parameters as stored."""
    check_model_folder(source)
    if STEP.value is not None:
        raise ValueError(f"--step={STEP.value}: {source} is no run's workdir and has no checkpoints; leave --step out")
    if (source / TOKENIZER_FILE).exists():
        open_model(source)  # an export reads its files too: what is wrong with them is said before the work
    params, config = load_hf(source)
    orbax.save_params(target / "checkpoints", cast(params), in_dtype(config))
    copy_side_files(source, target / "tokenizer")
    return params


def in_dtype(config: ModelConfig) -> ModelConfig:
    return config if DTYPE.value is None else dataclasses.replace(config, compute_dtype=DTYPE.value)


def cast(params):
    """In the dtype that was asked for; what selects experts stays float32, as official checkpoints have it."""
    if DTYPE.value is None:
        return params

    def leaf(path, array):
        wide = jax.tree_util.keystr(path).endswith("['expert_bias']")
        return array.astype(jnp.float32 if wide else DTYPE.value)

    return jax.tree_util.tree_map_with_path(leaf, params)


if __name__ == "__main__":
    run_program(main)
