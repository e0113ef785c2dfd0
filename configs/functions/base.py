"""A base of 0.5 M parameters that reads short functions, a quarter of the lines with a mistake (docs/environments.md).

python -m launch.pretrain --config=configs/functions/base.py --workdir=runs/functions/base
"""

from configs.own import base


def get_config():
    config = base.get_config()
    config.data.sources = ({"kind": "jsonl", "path": "mine/functions.jsonl"},)
    config.train.steps = 200
    return config
