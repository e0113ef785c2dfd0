"""Conversations of one family of tasks, or of all, half of them with a mistake.

mine/FAMILY_chats.jsonl has a line for each.

python -m launch.sft --config=configs/families/sft.py:toolkits --workdir=runs/toolkits/sft
"""

from configs.families.base import TOKENS, families_of, sizes_of
from configs.own import sft


def get_config(family="toolkits"):
    config, (context, _) = sft.get_config(), sizes_of(family)
    config.start_from = f"runs/{family}/base"
    config.sources = tuple({"path": f"mine/{name}_chats.jsonl"} for name in families_of(family))
    config.data.sequence_length = context
    config.optimizer.peak_lr = 2e-3
    config.train.batch_size = TOKENS // context
    config.train.steps = 400
    return config
