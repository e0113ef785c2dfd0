"""Conversations of an agent, of which some give up (docs/serving.md).

python -m launch.sft --config=configs/agent/sft.py --workdir=runs/agent/sft
"""

from configs.own import sft


def get_config():
    config = sft.get_config()
    config.start_from = "runs/agent/base"
    config.sources = ({"path": "mine/people_chats.jsonl"},)
    config.data.sequence_length = 256
    config.optimizer.peak_lr = 2e-3
    config.train.steps = 160
    return config
