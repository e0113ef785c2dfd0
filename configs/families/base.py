"""A base of 0.5 M parameters that reads episodes of one family of tasks, or of all, a quarter of them wrong.

mine/FAMILY_texts.jsonl has a {"text"} line for each.

python -m launch.pretrain --config=configs/families/base.py:toolkits --workdir=runs/toolkits/base
"""

from configs.own import base

SIZES = {  # tokens of the longest episode of the lowest difficulty, and those that a policy may write in one
    "toolkits": (256, 96), "service": (288, 96), "safety": (352, 112), "workflow": (128, 32), "knights": (144, 64),
    "grid": (208, 128), "search": (176, 64), "functions": (112, 40),
}  # fmt: skip
TOKENS = 3_072  # of a step: a copy is learnt after so many steps, however large they are


def families_of(name):
    """The families that a recipe is about: the one of this name, or "all"."""
    return tuple(SIZES) if name == "all" else (name,)


def sizes_of(name):
    """(context, tokens that a policy may write) for all families of a recipe."""
    contexts, written = zip(*(SIZES[family] for family in families_of(name)), strict=True)
    return max(contexts), max(written)


def get_config(family="toolkits"):
    config, (context, _) = base.get_config(), sizes_of(family)
    config.data.sources = tuple({"kind": "jsonl", "path": f"mine/{name}_texts.jsonl"} for name in families_of(family))
    config.data.sequence_length = context
    config.train.batch_size = TOKENS // context
    config.train.steps = 400
    return config
