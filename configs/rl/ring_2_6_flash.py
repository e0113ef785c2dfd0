"""Ring-2.6-flash, reasoning RL with KPop at 32K (as configs/rl/ring_2_6_1t.py).

    python -m launch.compile --config=configs/rl/ring_2_6_flash.py --program=rl --topology=v6e:16x16

256 TPU v6e. Mesh: fsdp 4 x expert 8 x context 8, as for pre-training at 32K. 480 prompts with 8 answers each are 60
microbatches of 64 rows at most, two rows a device and its seven context neighbours. As compiled: 25 of 32 GB of HBM; at
the least 71 s a step, limited by HBM (compute 40 s), so that MFU is at most 34 %. The engine, expert 64 x tensor 4 over
the same devices, takes 4 GB beside it.
"""

from configs.rl import ring_2_6_1t


def get_config():
    config = ring_2_6_1t.get_config()
    config.start_from = "ling-2.6-flash"
    config.rollout.slots = 512
    config.train.microbatches = 60
    config.mesh.update(data=1, fsdp=4, expert=8, context=8)
    config.engine.update(data=1, expert=64, tensor=4)
    return config
