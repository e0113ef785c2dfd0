"""Ling-2.6-1T, mid-training at 32K (report §2.3: Mid-1 and Mid-2, 675B tokens, the peak rate kept).

    python -m launch.compile --config=configs/pretrain/ling_2_6_1t_32k.py --topology=v5p:8x8x16

1,024 TPU v5p. Mesh: fsdp 16 x expert 8 x context 8, so that a device has 4,096 tokens of a row as at 4K, and as large
a part of the weights. A step has the tokens of one at 4K: 2,268 rows in 18 microbatches of 126, and two of padding.
"""

from configs.pretrain import ling_2_6_1t


def get_config():
    config = ling_2_6_1t.get_config()
    config.data.sequence_length = 32768
    # 675B tokens; the router's rate is report §2.3.1's.
    config.train.update(steps=9_083, batch_size=2268, router_bias_rate=1e-4)
    config.mesh.update(fsdp=16, context=8)
    return config
