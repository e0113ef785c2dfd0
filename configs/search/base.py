"""A base of 0.5 M parameters for the page on searches (docs/search.md): it reads searches written out.

python -m launch.pretrain --config=configs/search/base.py --workdir=runs/search/base
"""

from configs.own import base


def get_config():
    config = base.get_config()
    config.data.sources = ({"kind": "jsonl", "path": "mine/searches.jsonl"},)
    return config
