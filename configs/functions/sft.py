"""Short functions as conversations (docs/environments.md).

python -m launch.sft --config=configs/functions/sft.py --workdir=runs/functions/sft
"""

from configs.own import sft


def get_config():
    config = sft.get_config()
    config.start_from = "runs/functions/base"
    config.sources = ({"environment": "functions", "difficulties": (1,), "count": 1_500},)
    config.optimizer.peak_lr = 2e-3
    config.train.steps = 120
    return config
