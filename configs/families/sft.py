"""Conversations of one family of tasks, half of them with the turns of another task: mine/FAMILY_chats.jsonl.

python -m launch.sft --config=configs/families/sft.py:toolkits --workdir=runs/toolkits/sft
"""

from configs.families.base import SIZES, TOKENS
from configs.own import sft


def get_config(family="toolkits"):
    config, (context, _) = sft.get_config(), SIZES[family]
    config.start_from = f"runs/{family}/base"
    config.sources = ({"path": f"mine/{family}_chats.jsonl"},)
    config.data.sequence_length = context
    config.optimizer.peak_lr = 2e-3
    config.train.batch_size = TOKENS // context
    config.train.steps = 400
    return config
