"""A config for `--config`: the smallest migration that has all kinds of stages. It needs a source and data."""

from ling_jax.config import ModelConfig
from ling_jax.migrate.config import MigrateConfig, StageLoop
from ling_jax.migrate.convert import Conversion
from ling_jax.migrate.stages import mid_training, migration
from ling_jax.train.config import DataConfig, OptimizerConfig, Source, to_config_dict
from tests.helpers.small_stage import write_stage
from tests.helpers.tiny import tiny_config

BOTH = dict(num_layers=2, num_heads=4, vocab_size=263, first_dense_layers=2, compute_dtype="float32")
# Two layers become Lightning, two MLA, and MTP is converted along.
WHOLE = dict(num_layers=4, mtp_depth=1, first_dense_layers=1)


def source_config(**fields) -> ModelConfig:
    return tiny_config("2.0", **BOTH | dict(init_std=0.1) | fields)


def target_config(**fields) -> ModelConfig:
    sizes = dict(nope_dim=8, v_dim=8, rope_dim=4, kv_lora_rank=8, q_lora_rank=12, init_std=0.1, rope_theta=6e4)
    return tiny_config("2.6", **BOTH | sizes | fields)


def write_source(folder, **fields) -> None:
    write_stage(folder, source_config(**fields))


def small_config(source="", corpus="", *, target=None, **fields) -> MigrateConfig:
    """Of a source workdir and the text files in a folder."""
    target = target or target_config()
    stages = migration(target, linear=4 * 128, partial=2 * 128, mla=2 * 128, continued=128, gate=True)[:3]
    stages += mid_training(target, ((64, 5 * 128),), first_long_share=0.2, merges=2)
    defaults = dict(
        source=str(source),
        target=target,
        stages=stages,
        data=DataConfig(sources=(Source(kind="text", path=str(corpus)),), sequence_length=32, held_out_fraction=0.3),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=1),
        train=StageLoop(batch_size=4, log_every=2, eval_every=2, save_every=2),
        conversion=Conversion(kv_heads="repeat", calibration_tokens=256, held_out_tokens=64),
    )
    return MigrateConfig(**defaults | fields)


def get_config():
    return to_config_dict(small_config("to be named", "to be named"))
