"""A model learns the shortest of its own right answers: sums without the steps that it writes again.

python -m launch.distill --config=configs/align/tiny_shortest_correct.py --workdir=runs/shortest_correct
"""

from ling_jax.align.sft import ChatRows
from ling_jax.align.shortest_correct import Sampling
from ling_jax.align.specialists import DistillConfig, Teacher
from ling_jax.envs.sources import TaskSource
from ling_jax.train.config import LoopConfig, OptimizerConfig, to_config_dict


def get_config():
    tasks = (TaskSource(environment="running_sums", difficulties=(2, 3), count=512),)
    return to_config_dict(
        DistillConfig(
            start_from="runs/sft",
            teachers=(Teacher(model="runs/sft", tasks=tasks),),
            sampling=Sampling(context=256, max_tokens=160),
            data=ChatRows(sequence_length=256),
            optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=10),
            train=LoopConfig(steps=60, batch_size=16),
        )
    )
