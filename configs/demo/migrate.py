"""The base of `make demo` becomes a hybrid, Lightning and MLA layers in turn, by the report's steps.

    python -m launch.migrate --config=configs/demo/migrate.py --workdir=runs/demo/migrate

Held-out loss, nats a token: 2.38 of the base, 3.39 with two of four layers Lightning and 2.47 after their warm-up, 2.50
fused and 2.45 trained, 2.52 with MLA and 2.45 after its warm-up, 2.37 after continued training.

What follows starts from the last stage's folder, runs/demo/migrate/3_continued.
"""

import dataclasses

from configs.demo import pretrain
from ling_jax.config import model_config
from ling_jax.migrate.config import MigrateConfig, StageLoop
from ling_jax.migrate.convert import Conversion
from ling_jax.migrate.stages import migration
from ling_jax.train.config import OptimizerConfig, PretrainConfig, from_dict, to_config_dict


def get_config(folder="runs/demo"):
    base = from_dict(PretrainConfig, pretrain.get_config(folder).to_dict())
    target = model_config("tiny-2.6", layer_group_size=2, num_norm_groups=1, **pretrain.SIZES)
    step = base.train.batch_size * base.data.sequence_length
    return to_config_dict(
        MigrateConfig(
            source=f"{folder}/pretrain",
            target=target,
            stages=migration(
                target, linear=30 * step, partial=15 * step, mla=15 * step, continued=80 * step, gate=True
            ),
            data=dataclasses.replace(base.data, tokenizer="", folder=f"{folder}/pretrain/data"),  # the source's
            optimizer=OptimizerConfig(peak_lr=1.5e-3, warmup_steps=5),
            train=StageLoop(batch_size=base.train.batch_size, log_every=10, eval_every=30, eval_batches=8),
            seen_tokens=base.train.steps * step,
            conversion=Conversion(kv_heads="repeat", calibration_tokens=4096, held_out_tokens=2048),
        )
    )
