"""The tiny 2.0 base becomes the tiny 2.6: all of the report's steps, with a fraction of the base's tokens each.

python -m launch.pretrain --config=configs/pretrain/tiny_2_0.py --workdir=runs/tiny_2_0
python -m launch.migrate --config=configs/migrate/tiny.py --workdir=runs/migrate
"""

from ling_jax.config import model_config
from ling_jax.migrate.config import MigrateConfig, StageLoop
from ling_jax.migrate.convert import Conversion
from ling_jax.migrate.stages import mid_training, migration
from ling_jax.train.config import DataConfig, OptimizerConfig, Source, to_config_dict


def get_config():
    target = model_config("tiny-2.6", rope_theta=60000.0)  # six times the source's
    stages = migration(target, linear=245_760, partial=81_920, mla=122_880, continued=245_760)
    return to_config_dict(
        MigrateConfig(
            source="runs/tiny_2_0",
            target=target,
            stages=stages + mid_training(target, ((512, 122_880),), first_long_share=0.2, merges=4),
            data=DataConfig(sources=(Source(kind="python"),), sequence_length=256, held_out_fraction=0.05),
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=10),
            train=StageLoop(batch_size=8, eval_every=20, save_every=15),
            seen_tokens=1000 * 8 * 256,  # the base's steps: its rows come first in the same data
            conversion=Conversion(kv_heads="repeat", calibration_tokens=8192, held_out_tokens=4096),
        )
    )
