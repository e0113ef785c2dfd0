"""The agentic specialist of `make demo`: lookups, searches, and functions that a sandbox runs; GSPO.

python -m launch.align --config=configs/demo/agentic.py --workdir=runs/demo/agentic

Held-out tasks, one seed: lookups 78 % -> 95 % right, 1.83 -> 0.29 superfluous calls; searches 85 % -> 95 %;
functions 66 % -> 82 %. With 16 prompts a step searches lost in an earlier demo.
"""

from configs.align import tiny_agentic


def get_config(folder="runs/demo"):
    config = tiny_agentic.get_config()
    config.start_from = f"{folder}/sft"
    config.tasks = (
        {"environment": "lookup", "difficulties": (2,), "count": 1_600, "seed": 200_000},
        {"environment": "search", "difficulties": (1,), "count": 800, "seed": 210_000},
        {"environment": "functions", "difficulties": (1,), "count": 1_000, "seed": 220_000},
    )
    config.optimizer.peak_lr = 2e-4
    config.rollout.context = 120
    config.rollout.max_tokens = 72
    config.rollout.prompts_per_step = 24
    config.train.steps = 12
    config.train.dpr_steps = 12
    config.train.eval_tasks = 0
    return config
