"""Adaptive thinking: one model, two efforts, for which brevity counts differently.

python -m launch.rl --config=configs/rl/tiny_adaptive.py --workdir=runs/adaptive --config.start_from=runs/sft
"""

from configs.rl import tiny_kpop


def get_config():
    config = tiny_kpop.get_config()
    config.reward = "adaptive"
    config.efforts = ("high", "xhigh")
    return config
