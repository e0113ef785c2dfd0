"""Chat answers of `make demo`: sums and lookups whose steps are often written again, searches, functions.

python -m launch.sft --config=configs/demo/sft.py --workdir=runs/demo/sft

Held-out tasks, one seed: sums 59 %, lookups 78 %, searches 85 %, functions 66 % right.
"""

from ling_jax.align.records import ChatSource
from ling_jax.align.sft import ChatRows, SftConfig
from ling_jax.train.config import LoopConfig, OptimizerConfig, to_config_dict


def get_config(folder="runs/demo"):
    planted = {"redundancy": 0.6, "most": 1}  # so that the likeliest answer has every step and call twice
    sums = ChatSource(environment="digit_sums", difficulties=(3, 4, 5), count=8_000, solution=planted, weight=0.42)
    # KPop's longest: it can learn from those that are right now and then. Without them a start had none right.
    longest = ChatSource(environment="digit_sums", difficulties=(6,), count=1_000, weight=0.04)
    lookups = ChatSource(environment="lookup", difficulties=(2,), count=6_000, solution=planted, weight=0.34)
    search = ChatSource(environment="search", difficulties=(1,), count=1_500, weight=0.06)
    functions = ChatSource(path=f"{folder}/functions.jsonl", weight=0.14)
    return to_config_dict(
        SftConfig(
            start_from=f"{folder}/migrate/3_continued",
            sources=(sums, longest, lookups, search, functions),
            samples=0,  # launch.demo asks all stages the same questions
            data=ChatRows(sequence_length=144),
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=20),
            train=LoopConfig(steps=150, batch_size=16, log_every=20, eval_batches=8),
        )
    )
