"""Searches in notes, learnt by trial with GSPO: found, answered, and without calls that nobody needs (docs/search.md).

python -m launch.align --config=configs/search/rl.py --workdir=runs/search/rl
"""

from configs.align import tiny_agentic


def get_config():
    config = tiny_agentic.get_config()
    config.start_from = "runs/search/sft"
    config.tasks = ({"environment": "search", "difficulties": (1,), "count": 2_000, "seed": 100_000},)
    config.rollout.context = 176
    config.rollout.max_tokens = 72
    config.rollout.prompts_per_step = 16
    config.train.steps = 20
    config.train.dpr_steps = 20
    config.train.eval_tasks = 512
    return config
