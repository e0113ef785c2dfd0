"""Preference alignment with LPO: a model of this project judges, weighed by the focal reward.

python -m launch.align --config=configs/align/tiny_preference_engine.py --workdir=runs/pref_engine \
    --config.start_from=runs/evo_cot --config.judge.model=runs/evo_cot

The judge replies greedily, and its tokens are held to the form of the reply: any model gives a verdict. What it is
worth depends on the model; one as small as those of this folder judges nothing, and shows the way of the data alone.
"""

from configs.align import tiny_preference


def get_config():
    config = tiny_preference.get_config()
    config.judge.kind = "engine"
    config.judge.model = "runs/evo_cot"
    config.judge.max_tokens = 160  # four lines of a tokenizer of bytes
    config.rollout.prompts_per_step = 4
    config.train.steps = 10
    config.train.microbatches = 1
    return config
