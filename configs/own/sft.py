"""Chats for the page on own tasks (docs/own_tasks.md), of which every second one ends in a wrong answer.

python -m launch.sft --config=configs/own/sft.py --workdir=runs/mine/sft
"""

from ling_jax.align.records import ChatSource
from ling_jax.align.sft import ChatRows, SftConfig
from ling_jax.train.config import LoopConfig, OptimizerConfig, to_config_dict


def get_config():
    return to_config_dict(
        SftConfig(
            start_from="runs/mine/base",
            sources=(ChatSource(path="mine/chats.jsonl"),),
            data=ChatRows(sequence_length=96),
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=20),
            train=LoopConfig(steps=100, batch_size=32),
        )
    )
