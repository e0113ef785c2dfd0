"""GRPO as most papers run it: four optimisation steps a batch, a penalty to the start, tasks drawn by pass rate.

python -m launch.rl --config=configs/rl/tiny_grpo.py --workdir=runs/grpo --config.start_from=runs/sft
"""

from ling_jax.envs.sources import TaskSource
from ling_jax.rl.config import LoopConfig, ObjectiveConfig, RLConfig, RolloutConfig
from ling_jax.train.config import OptimizerConfig, to_config_dict


def get_config():
    return to_config_dict(
        RLConfig(
            start_from="runs/sft",
            tasks=(TaskSource(environment="running_sums", difficulties=(2, 3, 4), count=1000),),
            reward="outcome",
            objective=ObjectiveConfig(name="grpo", reference_kl=0.04),  # Shao et al. 2024 §4.2
            optimizer=OptimizerConfig(peak_lr=5e-5, warmup_steps=0, b2=0.999, weight_decay=0.01),
            rollout=RolloutConfig(context=256, max_tokens=96),
            train=LoopConfig(steps=40, updates_per_batch=4, microbatches=2, eval_tasks=256, dpr_steps=40),
        )
    )
