"""Ling-2.6-flash, mid-training at 32K (report §2.3: Mid-1 and Mid-2, 675B tokens, the peak rate kept).

    python -m launch.compile --config=configs/pretrain/ling_2_6_flash_32k.py --topology=v6e:16x16

256 devices. Mesh: fsdp 4 x expert 8 x context 8, so that a device has as many tokens of a row, and as large a part of
the weights, as at 4K. A step has the tokens of one at 4K: 1,024 rows in 16 microbatches of 64.
"""

from configs.pretrain import ling_2_6_flash


def get_config():
    config = ling_2_6_flash.get_config()
    config.data.sequence_length = 32768
    # 675B tokens; the router's rate is report §2.3.1's.
    config.train.update(steps=20_117, batch_size=1024, router_bias_rate=1e-4)
    config.mesh.update(fsdp=4, context=8)
    return config
