"""Ling-2.6-flash, continued pre-training at 4K (report §2.3: 8T tokens, all parameters, warm-up then constant).

    python -m launch.compile --config=configs/pretrain/ling_2_6_flash.py --topology=v6e:16x16
    python -m launch.pretrain --config=configs/pretrain/ling_2_6_flash.py --workdir=gs://… --config.start_from=…

256 devices, such as a slice v6e:16x16 or the two cores each of tpu7x:4x4x8. Mesh: fsdp 32 x expert 8, so a device
holds 1/32 of 32 experts. A step is 8,192 rows in 16 microbatches of 512, two rows a device: with one, gathering the
experts would take as long as computing with them. As compiled for v6e: 28 of 32 GB of HBM; at the least 16 s a step,
limited by HBM (compute 10 s, interconnect 5 s), so that MFU is at most 40 %; for tpu7x 27 of 96 GB, 8.4 s and 63 %.
"""

from configs.pretrain import ling_2_6_1t
from ling_jax.config import model_config
from ling_jax.train.config import to_config_dict


def get_config():
    config = ling_2_6_1t.get_config()
    config.model = to_config_dict(model_config("ling-2.6-flash", loss_chunk=512))
    config.optimizer.peak_lr = 2.61e-4  # Ling 2.0 report, Table 1
    # There 8352 rows; 8192 divide over the devices.
    config.train.update(steps=238_000, batch_size=8192, microbatches=16)
    config.mesh.update(data=1, fsdp=32, expert=8)
    return config
