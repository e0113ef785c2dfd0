"""Questions that a program of its own answers, learnt by trial with GRPO through the program (docs/serving.md).

python -m launch.rl --config=configs/agent/rl.py --workdir=runs/agent/rl

512 held-out tasks, one seed: 47 % right before, 92 % after 10 steps, the likeliest answer each.
"""

from configs.own import rl


def get_config():
    config = rl.get_config()
    config.start_from = "runs/agent/sft"
    config.tasks = ({"environment": "configs.agent.tasks:People", "difficulties": (1,), "count": 2_000},)
    config.optimizer.peak_lr = 2e-4
    config.rollout.agent = ("python", "configs/agent/agent.py")
    config.rollout.context = 256
    config.rollout.max_tokens = 64
    config.rollout.slots = 64
    config.rollout.prompts_per_step = 8
    config.train.steps = 10
    config.train.eval_tasks = 512
    config.train.eval_every = 0
    return config
