"""Hugging Face folder <-> Orbax checkpoint.

    python -m launch.port --source=Ling-2.6-flash --target=runs/flash --dtype=bfloat16
    python -m launch.port --source=runs/demo/pretrain --target=exported

A source with *.safetensors becomes a workdir (checkpoints/0 and tokenizer/), one with checkpoints/ becomes a Hugging
Face folder. Tokenizer and chat template go along.
"""

import dataclasses
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from launch.flags import run_program, usage_errors
from ling_jax.checkpoint import load_hf, orbax, write_hf
from ling_jax.config import ModelConfig
from ling_jax.files import new_folder

SOURCE = flags.DEFINE_string("source", None, "a Hugging Face folder or a run's workdir", required=True)
TARGET = flags.DEFINE_string("target", None, "a folder that is not there yet", required=True)
DTYPE = flags.DEFINE_enum("dtype", None, ["bfloat16", "float32"], "of the target; as stored if not given")
STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoints; the newest if not given")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def main() -> None:
    source, target, start = Path(SOURCE.value).expanduser(), Path(TARGET.value).expanduser(), time.monotonic()
    with usage_errors():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target} exists and is not empty; name a new folder")
        if (source / "checkpoints").is_dir():
            params, config = orbax.load_params(source / "checkpoints", STEP.value)
            with new_folder(target) as partial:
                write_hf(cast(params), in_dtype(config), partial)
                copy_tokenizer(source / "tokenizer", partial)
        elif any(source.glob("*.safetensors")):
            params, config = load_hf(source)
            with new_folder(target) as partial:
                orbax.save_params(partial / "checkpoints", cast(params), in_dtype(config))
                copy_tokenizer(source, partial / "tokenizer")
        else:
            raise FileNotFoundError(f"{source} holds neither *.safetensors nor checkpoints/ (a run's workdir)")
    leaves = jax.tree.leaves(params)
    size = sum(leaf.size for leaf in leaves)
    print(f"{size / 1e6:.2f}M parameters in {time.monotonic() - start:.1f} s: {source} -> {target}")


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


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    run_program(main)
