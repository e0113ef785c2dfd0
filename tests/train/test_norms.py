"""Norms by group of parameters."""

from ling_jax import spec
from ling_jax.config import model_config
from ling_jax.model import model_spec
from ling_jax.train.norms import parameter_group


def test_every_parameter_has_a_group():
    groups = {parameter_group(*leaf) for leaf in spec.named_leaves(model_spec(model_config("tiny-2.6"))).items()}
    assert groups == {"dense", "embed", "experts", "head", "lightning", "mla", "mtp", "norms", "router"}
