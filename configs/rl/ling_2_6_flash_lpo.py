"""Ling-2.6-flash, Evo-CoT with LPO at 32K (as configs/rl/ling_2_6_1t_lpo.py).

    python -m launch.compile --config=configs/rl/ling_2_6_flash_lpo.py --program=rl --topology=v6e:16x16

256 TPU v6e. Mesh: fsdp 4 x expert 8 x context 8, as for pre-training at 32K. A step learns from 480 prompts with 8
answers each, in 60 microbatches of 64 rows at most, two rows a device and its seven context neighbours.
"""

from configs.rl import ling_2_6_1t_lpo


def get_config():
    config = ling_2_6_1t_lpo.get_config()
    config.start_from = "ling-2.6-flash"
    config.rollout.slots = 512
    config.train.microbatches = 60
    config.mesh.fsdp = 4
    return config
