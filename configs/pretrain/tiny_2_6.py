"""A tiny Ling-2.6 on the Python standard library: the smallest run that learns.

python -m launch.pretrain --config=configs/pretrain/tiny_2_6.py --workdir=runs/tiny
"""

from ling_jax.config import model_config
from ling_jax.train.config import DataConfig, LoopConfig, OptimizerConfig, PretrainConfig, Source, to_config_dict


def get_config():
    return to_config_dict(
        PretrainConfig(
            model=model_config("tiny-2.6"),
            data=DataConfig(sources=(Source(kind="python"),), sequence_length=256, held_out_fraction=0.05),
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=20),
            train=LoopConfig(steps=1000, batch_size=8, eval_every=200),
        )
    )
