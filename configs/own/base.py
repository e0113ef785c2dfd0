"""A base of 0.5 M parameters for the page on own tasks (docs/own_tasks.md): it reads sums written out.

python -m launch.pretrain --config=configs/own/base.py --workdir=runs/mine/base
"""

from ling_jax.config import model_config
from ling_jax.train.config import DataConfig, LoopConfig, OptimizerConfig, PretrainConfig, Source, to_config_dict


def get_config():
    model = model_config(
        "tiny-2.6", num_layers=2, first_dense_layers=2, layer_group_size=2, mtp_depth=0, init_std=0.05, max_length=512
    )
    return to_config_dict(
        PretrainConfig(
            model=model,
            data=DataConfig(sources=(Source(kind="jsonl", path="mine/chats.jsonl"),), sequence_length=96),
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=20),
            train=LoopConfig(steps=150, batch_size=32),
        )
    )
