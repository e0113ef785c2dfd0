"""The demo's base trained further on the Python standard library: the smallest continued pre-training.

    python -m launch.pretrain --config=configs/pretrain/continue_tiny.py --workdir=runs/continued

`make demo` leaves runs/demo/pretrain; `--config.start_from=runs/tiny` starts from another run, or from a Hugging Face
folder. 2 CPU cores: 170 s of processor time, two compilations included (the machine had other work to do); the loss of
the first batch is 4.512, what `launch.evaluate`'s program gives for the stored model; held-out loss 3.329 after 100
steps, 3.032 after 200.
"""

from ling_jax.train.config import DataConfig, LoopConfig, OptimizerConfig, PretrainConfig, Source, to_config_dict


def get_config():
    return to_config_dict(
        PretrainConfig(
            start_from="runs/demo/pretrain",
            data=DataConfig(sources=(Source(kind="python"),), sequence_length=256, held_out_fraction=0.05),
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=20),
            train=LoopConfig(steps=200, batch_size=8, eval_every=100),
        )
    )
