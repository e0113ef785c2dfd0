"""Ling-2.6-1T, continued pre-training at 4K (report §2.3: 8T tokens, all parameters, warm-up then constant).

    python -m launch.compile --config=configs/pretrain/ling_2_6_1t.py --topology=v5p:8x8x16
    python -m launch.pretrain --config=configs/pretrain/ling_2_6_1t.py --workdir=gs://… --config.start_from=…

1,024 TPU v5p. Mesh: fsdp 128 x expert 8, so a device holds 1/128 of 32 experts and of the layers' other matrices,
gathered in bfloat16 layer by layer; a row never leaves its device but for the experts' seven other devices. A step is
18,144 rows in 18 microbatches of 1,008, one row a device and 16 rows of padding. As compiled: 57 of 95 GB of HBM; at
the least 84 s a step, limited by compute (HBM 42 s, interconnect 31 s), so that MFU is at most 73 %.
"""

from ling_jax.config import model_config
from ling_jax.train.config import (
    DataConfig,
    LoopConfig,
    MeshConfig,
    OptimizerConfig,
    PretrainConfig,
    Source,
    to_config_dict,
)


def get_config():
    return to_config_dict(
        PretrainConfig(
            model=model_config("ling-2.6-1t", loss_chunk=512),  # one row a device: larger chunks of it fit
            data=DataConfig(sources=(Source(kind="python"),), sequence_length=4096),
            optimizer=OptimizerConfig(peak_lr=1.2e-4),  # our choice; the report has none
            train=LoopConfig(steps=107_000, batch_size=18_144, microbatches=18),
            mesh=MeshConfig(data=1, fsdp=128, expert=8),
        )
    )
