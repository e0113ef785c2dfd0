"""Ring-2.6-1T, reasoning RL with KPop at 32K (report §3.2.3; numbers of Ring-1T where the report has none).

    python -m launch.compile --config=configs/rl/ring_2_6_1t.py --program=rl --topology=v5p:8x8x16

1,024 TPU v5p. Mesh: fsdp 16 x expert 8 x context 8, as for pre-training at 32K. A step learns from 480 prompts with 8
answers each (Ring-1T report §2.3.4), packed into rows of 32K: 30 microbatches of 128 rows, one a device and its seven
context neighbours, where all answers are as long as a row, and fewer where they are not. As compiled: 52 of 95 GB of
HBM; at the least 146 s a step, limited by compute, so that MFU is at most 72 %. The engine, data 2 x expert 128 x
tensor 4 over the same devices, takes 22 GB beside it; an update of its weights takes 45 ms at the least (docs/pods.md).
"""

from ling_jax.envs.sources import TaskSource
from ling_jax.rl.config import LoopConfig, ObjectiveConfig, RLConfig, RolloutConfig
from ling_jax.train.config import MeshConfig, ModelChanges, OptimizerConfig, to_config_dict


def get_config():
    return to_config_dict(
        RLConfig(
            start_from="ring-2.6-1t",  # name the folder of the stage before: --config.start_from=gs://…
            model=ModelChanges(loss_chunk=512),
            tasks=(TaskSource(path="questions.jsonl"),),
            reward="outcome",
            objective=ObjectiveConfig(name="kpop"),
            # Ring-1T report §2.3.4.
            optimizer=OptimizerConfig(peak_lr=2e-6, warmup_steps=0, b2=0.999, weight_decay=0.01),
            rollout=RolloutConfig(
                context=32768,
                slots=1024,
                group_size=8,
                prompts_per_step=480,
                token_budget=480 * 8 * 8192,  # our choice: a step's answers, of an assumed mean length
                max_staleness=4,
                max_retention=4,
            ),
            train=LoopConfig(steps=1000, microbatches=30),
            mesh=MeshConfig(data=1, fsdp=16, expert=8, context=8),
            engine=MeshConfig(data=2, expert=128, tensor=4),
        )
    )
