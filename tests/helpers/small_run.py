"""A config for `--config`: the smallest run that has all parts. It needs `--config.data.sources`."""

from ling_jax.train.config import DataConfig, LoopConfig, OptimizerConfig, PretrainConfig, Source, to_config_dict
from tests.helpers.tiny import tiny_config


def small_config(folder="", **train) -> PretrainConfig:
    """Of the text files in a folder, one document a file."""
    return PretrainConfig(
        model=tiny_config(num_layers=2, vocab_size=300, mtp_depth=1),
        data=DataConfig(sources=(Source(kind="text", path=str(folder)),), sequence_length=32, held_out_fraction=0.3),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=4),
        train=LoopConfig(**(dict(steps=12, batch_size=4, log_every=2, save_every=3, eval_every=5) | train)),
    )


def get_config():
    return to_config_dict(small_config("to be named"))


def write_corpus(folder, documents: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        words = (f"{word} {i * k % 7} " for k in range(30) for word in ("one", "other", f"n{k % i if i else k}"))
        (folder / f"{i:02}.txt").write_text("".join(words))
