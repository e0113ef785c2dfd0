"""A base of 0.5 M parameters that reads episodes of one family of tasks, a quarter of them wrong.

mine/FAMILY_texts.jsonl has a {"text"} line for each.

python -m launch.pretrain --config=configs/families/base.py:toolkits --workdir=runs/toolkits/base
"""

from configs.own import base

CONTEXT = {  # tokens, in bytes and a few special ones, of the longest episode of the lowest difficulty
    "toolkits": 448, "service": 512, "safety": 576, "workflow": 160, "knights": 144, "grid": 224, "search": 240,
}  # fmt: skip


def get_config(family="toolkits"):
    config = base.get_config()
    config.model.max_length = 640
    config.data.sources = ({"kind": "jsonl", "path": f"mine/{family}_texts.jsonl"},)
    config.data.sequence_length = CONTEXT[family]
    config.train.steps = 200
    return config
