"""The base of `make demo`: a Ling 2.0 model of 0.7 M parameters learns English docstrings, sums, calls and functions.

    python -m launch.pretrain --config=configs/demo/pretrain.py --workdir=runs/demo/pretrain

`launch.demo` writes the texts of the tasks and the tokenizer first. Experts and MTP are left out
here and learned by a second model (configs/demo/experts.py), so that the demo stays within twelve minutes: with both, a
step of this model takes 1.2 times as long on two CPU cores, and each of its programs 9 s longer to compile.
"""

from ling_jax.config import model_config
from ling_jax.train.config import DataConfig, LoopConfig, OptimizerConfig, PretrainConfig, Source, to_config_dict

SIZES = dict(
    num_layers=4,
    first_dense_layers=4,
    mtp_depth=0,
    max_length=512,
    init_std=0.04,  # at this width 0.02 learns sums four times slower
    scan_layers=False,  # a step takes 0.8 times as long on two CPU cores, and four layers compile as fast
)


def get_config(folder="runs/demo"):
    sources = (
        Source(kind="jsonl", path=f"{folder}/tasks.jsonl", weight=0.9),
        Source(kind="docstrings", weight=0.1),
    )
    return to_config_dict(
        PretrainConfig(
            model=model_config("tiny-2.0", **SIZES),
            data=DataConfig(sources=sources, sequence_length=120, tokenizer=f"{folder}/tokenizer"),
            optimizer=OptimizerConfig(peak_lr=1.5e-3, warmup_steps=50),
            train=LoopConfig(steps=400, batch_size=16, log_every=20, eval_batches=8),
        )
    )
