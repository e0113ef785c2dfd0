"""Ling-2.6-flash, mid-training at 256K (report §2.3: Mid-3, 525B tokens, the peak rate kept).

    python -m launch.compile --config=configs/pretrain/ling_2_6_flash_256k.py --topology=v6e:16x16

256 devices. Mesh: expert 8 x context 32, so that a device has 8,192 tokens of a row, as many as at 4K of two, and as
large a part of the weights. A step has the tokens of one at 4K: 128 rows in 16 microbatches of 8. As compiled for v6e:
28 of 32 GB of HBM; at the least 30 s a step, limited by HBM (compute 20 s, interconnect 6 s), so that MFU is at most
41 %.
"""

from configs.pretrain import ling_2_6_flash_32k


def get_config():
    config = ling_2_6_flash_32k.get_config()
    config.model.max_length = config.data.sequence_length = 262144  # the release says 131072; the report trains at 256K
    config.train.update(steps=round(525e9 / (128 * 262144)), batch_size=128)
    config.mesh.update(fsdp=1, context=32)
    return config
