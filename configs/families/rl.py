"""One family of tasks, of its lowest difficulty, learnt by trial with GRPO; or all, drawn by their pass rates.

python -m launch.rl --config=configs/families/rl.py:toolkits --workdir=runs/toolkits/rl
"""

from configs.families.base import families_of, sizes_of
from configs.own import rl
from ling_jax.envs import environment


def get_config(family="toolkits"):
    config = rl.get_config()
    config.start_from = f"runs/{family}/sft"
    config.tasks = tuple(
        {"environment": name, "difficulties": (environment(name).DIFFICULTIES[0],), "count": 2_000, "seed": 100_000}
        for name in families_of(family)
    )
    config.optimizer.peak_lr = 2e-4
    config.rollout.context, config.rollout.max_tokens = sizes_of(family)
    config.train.steps = 20
    config.train.updates_per_batch = 4
    config.train.dpr_steps = 20 if family == "all" else 0
    config.train.eval_tasks = 700
    config.train.eval_every = 0
    return config
