"""Conversations about short functions, half of the answers with a mistake (docs/environments.md).

python -m launch.sft --config=configs/functions/sft.py --workdir=runs/functions/sft
"""

from configs.own import sft


def get_config():
    config = sft.get_config()
    config.start_from = "runs/functions/base"
    config.sources = ({"path": "mine/chats.jsonl"},)
    config.optimizer.peak_lr = 2e-3
    config.train.steps = 180
    return config
