"""Conversations of one family of tasks, half of them with the turns of another task: mine/FAMILY_chats.jsonl.

python -m launch.sft --config=configs/families/sft.py:toolkits --workdir=runs/toolkits/sft
"""

from configs.families.base import CONTEXT
from configs.own import sft


def get_config(family="toolkits"):
    config = sft.get_config()
    config.start_from = f"runs/{family}/base"
    config.sources = ({"path": f"mine/{family}_chats.jsonl"},)
    config.data.sequence_length = CONTEXT[family]
    config.optimizer.peak_lr = 2e-3
    config.train.steps = 200
    return config
