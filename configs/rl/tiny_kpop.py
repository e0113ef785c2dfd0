"""KPop with partial rollouts: running sums, four weight versions of staleness at most.

python -m launch.rl --config=configs/rl/tiny_kpop.py --workdir=runs/kpop --config.start_from=runs/sft
"""

from ling_jax.envs.sources import TaskSource
from ling_jax.rl.config import LoopConfig, ObjectiveConfig, RLConfig, RolloutConfig
from ling_jax.train.config import OptimizerConfig, to_config_dict


def get_config():
    return to_config_dict(
        RLConfig(
            start_from="runs/sft",
            tasks=(TaskSource(environment="running_sums", difficulties=(2, 3, 4), count=10_000),),
            reward="outcome",
            objective=ObjectiveConfig(name="kpop"),
            optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=0, b2=0.999, weight_decay=0.01),
            rollout=RolloutConfig(
                context=256,
                max_tokens=96,
                slots=64,
                token_budget=32 * 8 * 45,  # a step's answers, of their mean length
                max_staleness=4,
                max_retention=4,
            ),
            train=LoopConfig(steps=40, microbatches=8, eval_tasks=256),
        )
    )
