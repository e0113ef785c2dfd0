"""A merge of models part by part is the merge of whole ones."""

import pytest

from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.merged import MergedReader
from ling_jax.checkpoint.orbax_parts import OrbaxReader, OrbaxWriter
from ling_jax.checkpoint.parts import TreeReader
from ling_jax.checkpoint.transfer import transfer
from ling_jax.train.merge import merge_checkpoints
from tests.helpers.tiny import assert_trees_equal, random_params, tiny_config

CONFIG = tiny_config("2.6", mtp_depth=1, compute_dtype="float32")


def test_it_has_the_bits_of_the_merge_in_memory(tmp_path):
    models = [random_params(CONFIG, dtype="float32", seed=seed) for seed in range(3)]
    with orbax.open_manager(tmp_path / "run", keep=3) as manager:
        for step, params in enumerate(models):
            orbax.save(manager, step, {"params": params}, CONFIG)
    coefficients = [0.5, 0.3, 0.2]
    merged = MergedReader([OrbaxReader(tmp_path / "run", step) for step in range(3)], coefficients)
    transfer(merged, OrbaxWriter(tmp_path / "merged", CONFIG, merged.dtypes))
    assert_trees_equal(orbax.load_params(tmp_path / "merged")[0], merge_checkpoints(iter(models), coefficients))


def test_models_of_other_runs_are_not_merged():
    smaller = tiny_config("2.6", compute_dtype="float32")
    first = TreeReader(random_params(CONFIG, dtype="float32"), CONFIG)
    others = [TreeReader(random_params(CONFIG), CONFIG), TreeReader(random_params(smaller, dtype="float32"), smaller)]
    for other in others:
        with pytest.raises(ValueError, match="checkpoint 1 is not of the model of the first; merge checkpoints of one"):
            MergedReader([first, other], [0.5, 0.5])
