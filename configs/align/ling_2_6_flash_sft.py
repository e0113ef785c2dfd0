"""Ling-2.6-flash, supervised fine-tuning on chats at 32K (as configs/align/ling_2_6_1t_sft.py).

    python -m launch.compile --config=configs/align/ling_2_6_flash_sft.py --topology=v6e:16x16
    python -m launch.sft --config=configs/align/ling_2_6_flash_sft.py --workdir=gs://… --config.start_from=gs://… \
        --config.sources="({'path': 'gs://…/chats.jsonl'},)"

256 TPU v6e. Mesh: fsdp 4 x expert 8 x context 8, as for pre-training at 32K. A step is 256 rows, 8.4M tokens of packed
chats, in 4 microbatches of 64: two rows a device and its seven context neighbours.
"""

from configs.align import ling_2_6_1t_sft


def get_config():
    config = ling_2_6_1t_sft.get_config()
    config.start_from = "ling-2.6-flash"
    config.train.microbatches = 4
    config.mesh.fsdp = 4
    return config
