"""The workdir of a stage to start from: a random model, small enough to learn a few answers by heart in seconds."""

from pathlib import Path

import jax

from ling_jax import data, model
from ling_jax.checkpoint import orbax
from tests.helpers.tiny import tiny_config

CONFIG = tiny_config(num_layers=1, first_dense_layers=1, vocab_size=263, hidden_size=32, init_std=0.1)


def write_stage(folder, config=CONFIG) -> None:
    """A random model, by default of a softmax layer, and a tokenizer of bytes."""
    orbax.save_params(folder / "checkpoints", model.init(jax.random.key(0), config), config)
    data.save_tokenizer(data.train_bpe(["a"], 263), folder / "tokenizer")


def write_judge(folder, max_length: int = 2048) -> Path:
    """A random model as judge, whose context has room for questions in bytes.

    Its weights are so large that what it says depends on the question.
    """
    write_stage(
        folder, tiny_config(num_layers=2, first_dense_layers=1, vocab_size=263, init_std=1.0, max_length=max_length)
    )
    return folder
