"""Migrates a Ling 2.0 model to the Lightning + MLA hybrid, stage by stage.

    python -m launch.migrate --config=configs/migrate/tiny.py --workdir=runs/migrate --config.source=runs/tiny_2_0
    python -m launch.migrate --config=configs/migrate/1t.py --dry_run

`--config.source` is a run's workdir or a Hugging Face folder; `--dry_run` also takes a model's name. SIGTERM and Ctrl-C
save and end it; the same command continues. The folder of the last stage is a workdir for `launch.generate`,
`launch.port` and the other programs.

Several processes, such as the hosts of a pod, run one migration together: the same command on each, as for
`launch.pretrain` (docs/clusters.md), with a workdir that all share. They divide the layers of conversions and train on
all their devices. Another number of them may continue it.
"""

from absl import flags

from launch.flags import define_config, run_program, usage_errors
from launch.training import NUM_HOSTS, join_hosts, starting_errors, training_errors
from ling_jax.migrate.config import MigrateConfig
from ling_jax.migrate.dry_run import as_text, dry_run, source_config
from ling_jax.migrate.plan import prepare_plan
from ling_jax.migrate.run import run_plan
from ling_jax.train.config import from_dict

CONFIG = define_config(MigrateConfig)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the migration; one that is there continues")
DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "print the stages with their tokens, memory, checkpoints and the share of each of --num_hosts, and end",
)


def main() -> None:
    with usage_errors(), starting_errors():
        config = from_dict(MigrateConfig, CONFIG.value.to_dict())
        if DRY_RUN.value:
            print(as_text(dry_run(config, source_config(config), NUM_HOSTS.value or 1)))
            return
        if WORKDIR.value is None:
            raise ValueError("--workdir is missing; name a folder, or --dry_run to see the plan")
        join_hosts(config, workdir=WORKDIR.value)
        plan = prepare_plan(config, WORKDIR.value)
    with training_errors():
        reports = run_plan(plan)
    first, last = reports[0], reports[-1]
    print(
        f"{plan.result(len(reports) - 1)}: held-out loss {first['loss_before']:.4f} nats/token in rows of "
        f"{first['sequence_length']} -> {last['loss_after']:.4f} in rows of {last['sequence_length']}"
    )


if __name__ == "__main__":
    run_program(main)
