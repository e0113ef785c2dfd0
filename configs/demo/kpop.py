"""KPop with partial rollouts in `make demo`: answers go on under newer weights, four versions of staleness at most.

python -m launch.rl --config=configs/demo/kpop.py --workdir=runs/demo/kpop

512 held-out sums, one seed: 98 % -> 99.8 % right; the mask takes 0.01 % of the tokens.
"""

from configs.rl import tiny_kpop


def get_config(folder="runs/demo"):
    config = tiny_kpop.get_config()
    config.start_from = f"{folder}/preference"
    config.tasks = ({"environment": "digit_sums", "difficulties": (3, 4), "count": 10_000, "seed": 300_000},)
    config.optimizer.peak_lr = 5e-5  # at 2e-4 stale, rare tokens ruin a policy that is right 97 % of the time
    config.rollout.context = 100
    config.rollout.max_tokens = 72
    config.rollout.token_budget = 32 * 8 * 36
    config.train.steps = 15
    config.train.eval_tasks = 0
    return config
