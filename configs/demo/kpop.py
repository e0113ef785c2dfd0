"""KPop with partial rollouts in `make demo`: answers go on under newer weights, four versions of staleness at most.

python -m launch.rl --config=configs/demo/kpop.py --workdir=runs/demo/kpop

512 held-out sums, one seed: 99 % -> 93 % right; the mask takes 0.5 % of the tokens.
"""

from configs.rl import tiny_kpop


def get_config(folder="runs/demo"):
    config = tiny_kpop.get_config()
    config.start_from = f"{folder}/preference"
    config.tasks = ({"environment": "digit_sums", "difficulties": (3, 4, 5), "count": 10_000, "seed": 300_000},)
    config.optimizer.peak_lr = 1e-4
    # Our choice: with phi 0.1 and half the rate the mask took 0.02 % of a sharper policy's tokens.
    config.objective.options = {"phi": 0.02, "kappa_cap": 2.0}
    config.rollout.context = 120
    config.rollout.max_tokens = 88
    config.rollout.prompts_per_step = 16
    config.rollout.slots = 256
    config.rollout.token_budget = 256 * 20  # an answer of some 40 tokens takes two or three versions
    config.train.steps = 16
    config.train.eval_tasks = 0
    return config
