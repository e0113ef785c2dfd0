"""A tiny Ling 2.0 (GQA in all layers) on the Python standard library: a base to migrate.

python -m launch.pretrain --config=configs/pretrain/tiny_2_0.py --workdir=runs/tiny_2_0
"""

from configs.pretrain import tiny_2_6
from ling_jax.config import model_config
from ling_jax.train.config import to_config_dict


def get_config():
    config = tiny_2_6.get_config()
    config.model = to_config_dict(model_config("tiny-2.0"))
    return config
