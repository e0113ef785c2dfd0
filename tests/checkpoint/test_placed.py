"""What a device holds of a leaf is read by itself."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.checkpoint import load_hf, save_hf
from ling_jax.checkpoint.hf_reader import HfReader
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.names import row_dim, tensor_mappings
from ling_jax.checkpoint.parts import TreeReader
from ling_jax.checkpoint.placed import read_block
from ling_jax.checkpoint.transfer import transfer
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import make_mesh
from ling_jax.spec import named_leaves
from tests.helpers.tiny import assert_trees_equal, random_params, tiny_config


@pytest.mark.parametrize(("family", "fp8"), [("2.6", False), ("2.0", False), ("2.6", True)])
def test_any_block_of_any_leaf_is_the_same_numbers(tmp_path, family, fp8):
    wide = dict(hidden_size=160, head_dim=64, expert_ffn_size=136, num_layers=2) if fp8 else {}  # several blocks of FP8
    config = tiny_config(family, mtp_depth=1, compute_dtype="float32", **wide)
    source = TreeReader(random_params(config, dtype="float32"), config)
    transfer(source, HfWriter(tmp_path, config, source.dtypes, fp8=fp8))
    reader, leaves = HfReader(tmp_path), named_leaves(load_hf(tmp_path)[0])
    dims = {mapping.leaf: row_dim(mapping) for mapping in tensor_mappings(model_spec(config), config)}

    @given(st.data())
    def check(data):
        path = data.draw(st.sampled_from(sorted(leaves)))
        sizes = leaves[path].shape
        begins = [data.draw(st.integers(0, size - 1)) for size in sizes]
        bounds = tuple((b, data.draw(st.integers(b + 1, size))) for b, size in zip(begins, sizes, strict=True))
        wanted = leaves[path][tuple(slice(*bound) for bound in bounds)]
        np.testing.assert_array_equal(read_block(reader, path, bounds, dims[path]), wanted)

    check()


def test_a_model_on_a_mesh_is_the_model_on_the_host(tmp_path):
    config = tiny_config("2.6", mtp_depth=1, compute_dtype="float32")
    save_hf(random_params(config, dtype="float32"), config, tmp_path)
    params, found = load_hf(tmp_path, mesh=make_mesh())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    wanted, wanted_config = load_hf(tmp_path)
    assert_trees_equal(params, wanted)
    assert found == wanted_config
