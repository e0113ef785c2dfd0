"""Functions of one line, learnt by trial with GRPO; hidden calls in a sandbox decide (docs/environments.md).

python -m launch.rl --config=configs/functions/rl.py --workdir=runs/functions/rl

561 held-out functions, one seed: 51 % right before, 62 % after 20 steps, the likeliest answer each.
"""

from configs.own import rl


def get_config():
    config = rl.get_config()
    config.start_from = "runs/functions/sft"
    config.tasks = ({"environment": "functions", "difficulties": (1,), "count": 2_000, "seed": 100_000},)
    config.optimizer.peak_lr = 2e-4
    config.rollout.context = 112
    config.rollout.max_tokens = 40
    config.train.steps = 20
    config.train.eval_tasks = 700
    config.train.eval_every = 0
    return config
