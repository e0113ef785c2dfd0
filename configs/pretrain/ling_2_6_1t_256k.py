"""Ling-2.6-1T, mid-training at 256K (report §2.3: Mid-3, 525B tokens, the peak rate kept).

    python -m launch.compile --config=configs/pretrain/ling_2_6_1t_256k.py --topology=v5p:8x8x16

1,024 TPU v5p. Mesh: fsdp 2 x expert 8 x context 64, so that a device has 4,096 tokens of a row as at 4K, and as large
a part of the weights. A step is 288 rows in 18 microbatches of 16: 1.6 % more tokens than one at 4K.
As compiled: 63 of 95 GB of HBM; at the least 137 s a step, limited by compute (HBM 78 s, interconnect 32 s), so that
MFU is at most 66 %.
"""

from configs.pretrain import ling_2_6_1t_32k


def get_config():
    config = ling_2_6_1t_32k.get_config()
    config.data.sequence_length = 262144
    config.train.update(steps=6_954, batch_size=288)
    config.mesh.update(fsdp=2, context=64)
    return config
