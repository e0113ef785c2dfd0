"""Ling-flash-2.0 becomes Ling-2.6-flash, with the report's tokens.

python -m launch.migrate --config=configs/migrate/flash.py --dry_run
"""

from ling_jax.config import model_config
from ling_jax.migrate.config import MigrateConfig, StageLoop
from ling_jax.migrate.stages import report_stages
from ling_jax.train.config import DataConfig, MeshConfig, OptimizerConfig, Source, to_config_dict


def get_config():
    target = model_config("ling-2.6-flash", max_length=262144)  # the release says 131072; the report trains at 256K
    return to_config_dict(
        MigrateConfig(
            source="ling-flash-2.0",
            target=target,
            stages=report_stages(target, contexts=(8, 8, 32)),
            data=DataConfig(sources=(Source(kind="jsonl", path="corpus/*.jsonl"),), sequence_length=4096),
            optimizer=OptimizerConfig(peak_lr=2.61e-4),  # Ling 2.0 report, Table 1
            # There 8352 rows; of 8192, 128 rows of 256K are left, which a mesh can split.
            train=StageLoop(batch_size=8192, microbatches=16, eval_every=400, save_every=400),
            mesh=MeshConfig(data=1, fsdp=32, expert=8),
        )
    )
