"""Distils one teacher or several specialists into a model: their shortest correct answers, then fine-tuning on them.

    python -m launch.distill --config=configs/align/tiny_shortest_correct.py --workdir=runs/shortest_correct

The answers are written into WORKDIR/data once, with figures beside them. SIGTERM and Ctrl-C save and end the training;
the same command continues.
"""

from absl import flags

from launch.flags import define_config, run_program, usage_errors
from launch.sandboxed import start_sandbox
from launch.training import join_hosts, starting_errors, training_errors
from ling_jax.align.sft import tune
from ling_jax.align.specialists import DistillConfig, prepare_distillation
from ling_jax.train.config import from_dict

CONFIG = define_config(DistillConfig)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; a run that is there continues", required=True)
PROFILE = flags.DEFINE_bool("profile", False, "trace a few steps into WORKDIR/profile (config.train.profile_step)")


def main() -> None:
    with usage_errors(), starting_errors():
        config = from_dict(DistillConfig, CONFIG.value.to_dict())
        start_sandbox(source.environment for teacher in config.teachers for source in teacher.tasks)
        join_hosts(config, workdir=WORKDIR.value)
        run = prepare_distillation(config, WORKDIR.value)
    with training_errors():
        tune(run, samples=config.samples, profile=PROFILE.value)


if __name__ == "__main__":
    run_program(main)
