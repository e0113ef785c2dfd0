"""Ling-1T becomes Ling-2.6-1T, with the report's tokens.

python -m launch.migrate --config=configs/migrate/1t.py --dry_run --num_hosts=256
launch/pod.sh run POD ZONE -m launch.migrate --config=configs/migrate/1t.py --workdir=/shared/1t

The second runs it on the 256 hosts of a v5p:8x8x16, each of which mounts /shared; `source` is then a folder there.
"""

from ling_jax.config import model_config
from ling_jax.migrate.config import MigrateConfig, StageLoop
from ling_jax.migrate.stages import report_stages
from ling_jax.train.config import DataConfig, MeshConfig, OptimizerConfig, Source, to_config_dict


def get_config():
    target = model_config("ling-2.6-1t")
    return to_config_dict(
        MigrateConfig(
            source="ling-1t",
            target=target,
            stages=report_stages(target, contexts=(8, 8, 64)),
            data=DataConfig(sources=(Source(kind="jsonl", path="corpus/*.jsonl"),), sequence_length=4096),
            optimizer=OptimizerConfig(peak_lr=1.86e-4),  # Ling 2.0 report, Table 1
            # There 18144 rows; of 16384, 256 rows of 256K are left, which a mesh can split.
            train=StageLoop(batch_size=16384, microbatches=16, eval_every=200, save_every=200),
            mesh=MeshConfig(data=1, fsdp=128, expert=8),
        )
    )
