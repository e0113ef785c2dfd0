"""Ling-2.6-1T, supervised fine-tuning on chats at 32K (report §3.1; numbers of Ring-1T where the report has none).

    python -m launch.compile --config=configs/align/ling_2_6_1t_sft.py --topology=v5p:8x8x16
    python -m launch.sft --config=configs/align/ling_2_6_1t_sft.py --workdir=gs://… --config.start_from=gs://… \
        --config.sources="({'path': 'gs://…/chats.jsonl'},)"

1,024 TPU v5p. Mesh: fsdp 16 x expert 8 x context 8, as for pre-training at 32K, so that a device has 4,096 tokens of a
row. A step is 256 rows, 8.4M tokens of packed chats, in 2 microbatches of 128: one row a device and its seven context
neighbours.
"""

from ling_jax.align.records import ChatSource
from ling_jax.align.sft import ChatRows, SftConfig
from ling_jax.train.config import LoopConfig, MeshConfig, OptimizerConfig, to_config_dict


def get_config():
    return to_config_dict(
        SftConfig(
            start_from="ling-2.6-1t",  # the folder of the base model takes its place: --config.start_from=gs://…
            sources=(ChatSource(path="chats.jsonl"),),
            data=ChatRows(sequence_length=32768),  # our choice; Ring-1T has 64K
            # Ring-1T report, fine-tuning on long chains of thought: 3 epochs, cosine.
            optimizer=OptimizerConfig(peak_lr=2e-4, schedule="cosine", warmup_steps=30),
            # Our choice: steps and rows, for 3 epochs of 5.6B tokens; the router's rate, that of mid-training.
            train=LoopConfig(steps=2000, batch_size=256, microbatches=2, router_bias_rate=1e-4),
            mesh=MeshConfig(data=1, fsdp=16, expert=8, context=8),
        )
    )
