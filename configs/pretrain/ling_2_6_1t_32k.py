"""Ling-2.6-1T, mid-training at 32K (report §2.3: Mid-1 and Mid-2, 675B tokens, the peak rate kept).

    python -m launch.compile --config=configs/pretrain/ling_2_6_1t_32k.py --topology=v5p:8x8x16

1,024 TPU v5p. Mesh: fsdp 16 x expert 8 x context 8, so that a device has 4,096 tokens of a row as at 4K, and as large
a part of the weights. A step has the tokens of one at 4K: 2,268 rows in 18 microbatches of 126, and two of padding.
As compiled: 63 of 95 GB of HBM; at the least 90 s a step, limited by compute (HBM 49 s, interconnect 31 s), so that MFU
is at most 72 %.
"""

from configs.pretrain import ling_2_6_1t


def get_config():
    return at_32k(ling_2_6_1t.get_config())


def at_32k(config):
    """A config of 4K with eight times the length, an eighth of the rows, and devices of a row in place of fsdp's."""
    config.data.sequence_length = 32768
    config.train.batch_size //= 8
    config.mesh.update(fsdp=config.mesh.fsdp // 8, context=8)
    # 675B tokens; the router's rate is report §2.3.1's.
    config.train.update(steps=round(675e9 / (config.train.batch_size * 32768)), router_bias_rate=1e-4)
    return config
