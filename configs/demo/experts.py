"""A small hybrid with experts and MTP in `make demo`: how the router balances its experts, and what MTP predicts.

    python -m launch.pretrain --config=configs/demo/experts.py --workdir=runs/demo/experts

No other stage starts from it. One Lightning and one MLA layer, each with eight experts: a token has two of them and the
shared one. One MTP layer. It reads the texts and the tokenizer of the demo's base.
"""

from configs.demo import pretrain
from ling_jax.config import model_config
from ling_jax.train.config import OptimizerConfig, PretrainConfig, from_dict, to_config_dict


def get_config(folder="runs/demo"):
    config = to_config_dict(from_dict(PretrainConfig, pretrain.get_config(folder).to_dict()))
    model = model_config("tiny-2.6", num_layers=2, layer_group_size=2, first_dense_layers=0, max_length=512)
    config.model = to_config_dict(model)
    config.optimizer = to_config_dict(OptimizerConfig(peak_lr=2e-3, warmup_steps=10))
    config.train.steps = 45
    config.train.log_every = 10
    config.train.batch_size = 8
    return config
