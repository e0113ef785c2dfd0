"""On-policy distillation from two specialists: the student answers, and each domain's teacher says how likely it was.

python -m launch.align --config=configs/align/tiny_on_policy.py --workdir=runs/on_policy --config.start_from=runs/sft
"""

from ling_jax.envs.sources import TaskSource
from ling_jax.rl.config import LoopConfig, ObjectiveConfig, RLConfig, RolloutConfig
from ling_jax.train.config import OptimizerConfig, to_config_dict


def get_config():
    sums = TaskSource(environment="running_sums", difficulties=(2, 3), count=1000)
    orderings = TaskSource(environment="ordering", difficulties=(2, 3), count=1000)
    return to_config_dict(
        RLConfig(
            start_from="runs/sft",
            tasks=(sums, orderings),
            teachers=("runs/sums", "runs/orderings"),
            reward="outcome",  # for the log alone: the loss does not use it
            objective=ObjectiveConfig(name="reverse_kl"),
            optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=0, b2=0.999, weight_decay=0.01),
            rollout=RolloutConfig(context=256, max_tokens=96, group_size=2),
            train=LoopConfig(steps=40, microbatches=4, eval_tasks=256),
        )
    )
