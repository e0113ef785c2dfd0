"""Preference alignment with LPO: five rule judges, weighed by the focal reward.

python -m launch.align --config=configs/align/tiny_preference.py --workdir=runs/pref --config.start_from=runs/evo_cot
"""

from configs.align import tiny_evo_cot


def get_config():
    config = tiny_evo_cot.get_config()
    config.start_from = "runs/evo_cot"
    config.reward = "preference"
    return config
