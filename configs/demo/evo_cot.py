"""Evo-CoT with LPO in `make demo`: right, short and without steps that are written again.

python -m launch.align --config=configs/demo/evo_cot.py --workdir=runs/demo/evo_cot

512 held-out sums, one seed: 59 % -> 87 % right, 48 -> 35 tokens an answer.
"""

from configs.align import tiny_evo_cot


def get_config(folder="runs/demo"):
    config = tiny_evo_cot.get_config()
    config.start_from = f"{folder}/sft"
    config.tasks = ({"environment": "digit_sums", "difficulties": (3, 4, 5), "count": 10_000, "seed": 200_000},)
    config.optimizer.peak_lr = 2e-4
    config.rollout.context = 120
    config.rollout.max_tokens = 88
    config.train.steps = 12
    config.train.eval_tasks = 0  # launch.demo asks all stages the same questions
    return config
