"""Ling-2.6-flash, mid-training at 32K (report §2.3: Mid-1 and Mid-2, 675B tokens, the peak rate kept).

    python -m launch.compile --config=configs/pretrain/ling_2_6_flash_32k.py --topology=v6e:16x16

256 devices. Mesh: fsdp 4 x expert 8 x context 8, so that a device has as many tokens of a row, and as large a part of
the weights, as at 4K. A step has the tokens of one at 4K: 1,024 rows in 16 microbatches of 64. As compiled for v6e: 28
of 32 GB of HBM; at the least 20 s a step, limited by HBM (compute 11 s, interconnect 5 s), so that MFU is at most 36 %.
"""

from configs.pretrain import ling_2_6_flash
from configs.pretrain.ling_2_6_1t_32k import at_32k


def get_config():
    return at_32k(ling_2_6_flash.get_config())
