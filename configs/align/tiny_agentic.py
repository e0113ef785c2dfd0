"""Agentic RL with GSPO: sums of numbers that a tool knows, paid for outcome and process, drawn by their pass rates.

python -m launch.align --config=configs/align/tiny_agentic.py --workdir=runs/agentic --config.start_from=runs/sft
"""

from configs.align import tiny_evo_cot


def get_config():
    config = tiny_evo_cot.get_config()
    config.tasks = ({"environment": "lookup", "difficulties": (1, 2), "count": 1000},)
    config.reward = "agentic"
    config.objective.name = "gspo"
    config.rollout.context = 384
    config.rollout.max_tokens = 200
    config.train.dpr_steps = 40
    return config
