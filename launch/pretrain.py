"""Pre-trains a model on text.

    python -m launch.pretrain --config=configs/pretrain/tiny_2_6.py --workdir=runs/tiny
    python -m launch.pretrain --config=configs/pretrain/continue_tiny.py --workdir=runs/2 --config.start_from=runs/tiny

The first starts from random parameters, the second from those of a run's workdir or a Hugging Face folder. Fields of
the config are overridden by `--config.train.steps=200`. `--data=books/` trains on these files in place of the config's
sources; a mixture is `--config.data.sources="({'kind': 'text', 'path': 'books/'}, {'kind': 'python'})"`. SIGTERM and
Ctrl-C save and end it; the same command continues.
"""

from absl import flags

from launch.flags import define_config, run_program, usage_errors
from launch.training import join_hosts, starting_errors, training_errors
from ling_jax.data.sources import kind_of
from ling_jax.run.loop import prepare, train
from ling_jax.train.config import PretrainConfig, from_dict

CONFIG = define_config(PretrainConfig)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; a run that is there continues", required=True)
DATA = flags.DEFINE_string("data", None, "text, JSON lines or parquet to train on: a file, a folder or a glob")
PROFILE = flags.DEFINE_bool("profile", False, "trace a few steps into WORKDIR/profile (config.train.profile_step)")


def main() -> None:
    with usage_errors(), starting_errors():
        values = CONFIG.value.to_dict()
        if DATA.value is not None:
            values["data"]["sources"] = ({"kind": kind_of(DATA.value), "path": DATA.value},)
        config = from_dict(PretrainConfig, values)
        join_hosts(config, workdir=WORKDIR.value)
        run = prepare(config, WORKDIR.value)
    with training_errors():
        train(run, profile=PROFILE.value)


if __name__ == "__main__":
    run_program(main)
