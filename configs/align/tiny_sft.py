"""Chat answers to sums, in which steps are often written again: the smallest fine-tuning that learns.

python -m launch.sft --config=configs/align/tiny_sft.py --workdir=runs/sft --config.start_from=runs/tiny
"""

from ling_jax.align.records import ChatSource
from ling_jax.align.sft import ChatRows, SftConfig
from ling_jax.train.config import LoopConfig, OptimizerConfig, to_config_dict


def get_config():
    return to_config_dict(
        SftConfig(
            start_from="runs/tiny",
            sources=(
                ChatSource(
                    environment="running_sums",
                    difficulties=(2, 3),
                    count=20_000,
                    solution={"redundancy": 0.55},
                ),
            ),
            data=ChatRows(sequence_length=256),
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=20),
            train=LoopConfig(steps=400, batch_size=16, eval_every=100),
        )
    )
