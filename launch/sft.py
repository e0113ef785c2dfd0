"""Fine-tunes a model on conversations.

    python -m launch.sft --config=configs/align/tiny_sft.py --workdir=runs/sft

`--config.start_from` is a stage's workdir or a Hugging Face folder; `--config.sources` are files of JSON lines
{"messages", "tools"} or environments' tasks with their solutions. SIGTERM and Ctrl-C save and end it; the same command
continues.
"""

from absl import flags

from launch.flags import define_config, run_program, usage_errors
from launch.sandboxed import start_sandbox
from launch.training import join_hosts, starting_errors, training_errors
from ling_jax.align.sft import SftConfig, prepare_sft, tune
from ling_jax.train.config import from_dict

CONFIG = define_config(SftConfig)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; a run that is there continues", required=True)
PROFILE = flags.DEFINE_bool("profile", False, "trace a few steps into WORKDIR/profile (config.train.profile_step)")


def main() -> None:
    with usage_errors(), starting_errors():
        config = from_dict(SftConfig, CONFIG.value.to_dict())
        start_sandbox(source.environment for source in config.sources)
        join_hosts(config, workdir=WORKDIR.value)
        run = prepare_sft(config, WORKDIR.value)
    with training_errors():
        tune(run, samples=config.samples, profile=PROFILE.value)


if __name__ == "__main__":
    run_program(main)
