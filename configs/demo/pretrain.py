"""The pre-training of `make demo`: three minutes on two cores.

python -m launch.pretrain --config=configs/demo/pretrain.py --workdir=runs/demo/pretrain
"""

from configs.pretrain import tiny_2_6


def get_config():
    config = tiny_2_6.get_config()
    config.train.steps = 320
    config.train.eval_every = 80
    config.train.eval_batches = 40
    return config
