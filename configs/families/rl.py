"""One family of tasks, of its lowest difficulty, learnt by trial with GRPO.

python -m launch.rl --config=configs/families/rl.py:toolkits --workdir=runs/toolkits/rl
"""

from configs.families.base import SIZES
from configs.own import rl
from ling_jax.envs import environment


def get_config(family="toolkits"):
    config = rl.get_config()
    config.start_from = f"runs/{family}/sft"
    lowest = environment(family).DIFFICULTIES[0]
    config.tasks = ({"environment": family, "difficulties": (lowest,), "count": 2_000, "seed": 100_000},)
    config.optimizer.peak_lr = 2e-4
    config.rollout.context, config.rollout.max_tokens = SIZES[family]
    config.train.steps = 20
    config.train.updates_per_batch = 4
    config.train.eval_tasks = 600
    config.train.eval_every = 0
    return config
