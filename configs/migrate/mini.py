"""Ling-mini-2.0 becomes a hybrid of its size, which was never released: four Lightning layers to one MLA layer.

python -m launch.migrate --config=configs/migrate/mini.py --dry_run
"""

from ling_jax.config import model_config
from ling_jax.migrate.config import MigrateConfig, StageLoop
from ling_jax.migrate.stages import report_stages
from ling_jax.train.config import DataConfig, MeshConfig, OptimizerConfig, Source, to_config_dict

SIZES = (
    "hidden_size", "num_layers", "num_heads", "ffn_size", "first_dense_layers", "expert_ffn_size",
    "shared_ffn_size",
)  # fmt: skip


def get_config():
    target = model_config(
        "ling-2.6-flash",
        **{name: getattr(model_config("ling-mini-2.0"), name) for name in SIZES},
        layer_group_size=5,
        num_norm_groups=4,  # these two as ring-mini-linear-2.0
        max_length=262144,
    )
    return to_config_dict(
        MigrateConfig(
            source="ling-mini-2.0",
            target=target,
            stages=report_stages(target, contexts=(8, 8, 8)),
            data=DataConfig(sources=(Source(kind="jsonl", path="corpus/*.jsonl"),), sequence_length=4096),
            optimizer=OptimizerConfig(peak_lr=3.36e-4),  # Ling 2.0 report, Table 1
            # There 4400 rows; of 4096, 64 rows of 256K are left, which a mesh can split.
            train=StageLoop(batch_size=4096, microbatches=8, eval_every=500, save_every=500),
            mesh=MeshConfig(data=1, fsdp=8, expert=8),
        )
    )
