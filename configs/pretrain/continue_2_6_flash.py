"""Ling-2.6-flash's base trained further at 32K, as in the report's mid-training (§2.3: Mid-1 and Mid-2).

    python -m launch.pretrain --config=configs/pretrain/continue_2_6_flash.py --workdir=gs://… --config.start_from=…

The data is to be named (`--config.data.sources`), and `launch.compile` takes `--config.start_from=ling-2.6-flash`.
`start_from` is the downloaded folder, or what `launch.port` made of it. Sizes, rope and tokenizer are the folder's:
rows longer than its context need `--config.model.max_length`, another base of the rotation `--config.model.rope_theta`.
Mesh, batch, memory and the learning rate (kept at its peak) are those of ling_2_6_flash_32k.py.
"""

from configs.pretrain import ling_2_6_flash_32k
from ling_jax.train.config import ModelChanges, to_config_dict


def get_config():
    config = ling_2_6_flash_32k.get_config()
    config.start_from = "Ling-2.6-flash-base"
    # The released file gives MTP's loss the weight 0; 0.1 is report §2.3.1's.
    config.model = to_config_dict(ModelChanges(loss_chunk=512, mtp_loss_weight=0.1))
    config.optimizer.warmup_steps = 200  # our choice: AdamW starts without moments; 200 steps are 7B tokens
    return config
