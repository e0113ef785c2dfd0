"""A base of 0.5 M parameters that reads conversations of an agent (docs/serving.md).

python -m launch.pretrain --config=configs/agent/base.py --workdir=runs/agent/base
"""

from configs.own import base


def get_config():
    config = base.get_config()
    config.model.vocab_size = 640
    config.data.sources = ({"kind": "jsonl", "path": "mine/people_texts.jsonl"},)
    config.data.sequence_length = 256
    config.train.steps = 150
    return config
