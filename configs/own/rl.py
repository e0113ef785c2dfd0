"""A file of own tasks, learnt by trial: GRPO, synchronous, 32 prompts x 8 answers a step (docs/own_tasks.md).

python -m launch.rl --config=configs/own/rl.py --workdir=runs/mine/rl
"""

from ling_jax.envs.sources import TaskSource
from ling_jax.rl.config import LoopConfig, ObjectiveConfig, RLConfig, RolloutConfig
from ling_jax.train.config import OptimizerConfig, to_config_dict


def get_config():
    return to_config_dict(
        RLConfig(
            start_from="runs/mine/sft",
            tasks=(TaskSource(path="mine/questions.jsonl"),),
            reward="outcome",
            objective=ObjectiveConfig(name="grpo"),
            optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=0, b2=0.999, weight_decay=0.01),
            rollout=RolloutConfig(context=80, max_tokens=40, slots=256, prompts_per_step=32),
            train=LoopConfig(steps=30, eval_tasks=64, eval_every=10),
        )
    )
