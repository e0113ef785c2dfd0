"""Every leaf has the official name, place and layout, written down here a second time, layer by layer."""

import numpy as np
import pytest

from ling_jax.checkpoint import hf_tensors
from ling_jax.checkpoint.names import tensor_mappings
from ling_jax.model import model_spec
from ling_jax.model.layers import layer_numbers
from ling_jax.spec import named_leaves
from tests.helpers.tiny import FAMILIES, random_params, tiny_config


def official_shapes(c):
    """{name: torch shape} of a model, from the official modules."""
    shapes = {
        "model.word_embeddings.weight": (c.vocab_size, c.hidden_size),
        "model.norm.weight": (c.hidden_size,),
        "lm_head.weight": (c.vocab_size, c.hidden_size),
    }
    for number in range(c.num_layers + c.mtp_depth):
        mtp = number >= c.num_layers
        layer = official_layer(
            c, softmax=mtp or c.is_full_attention_layer(number), moe=mtp or number >= c.first_dense_layers
        )
        if mtp:
            layer |= {f"{name}.weight": (c.hidden_size,) for name in ("enorm", "hnorm", "final_layernorm")}
            layer["eh_proj.weight"] = (c.hidden_size, 2 * c.hidden_size)
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def official_layer(c, softmax, moe):
    shapes = {f"{name}.weight": (c.hidden_size,) for name in ("input_layernorm", "post_attention_layernorm")}
    mixer = official_mla(c) if softmax and c.full_attention == "mla" else official_attention(c, softmax)
    shapes |= {f"attention.{name}": shape for name, shape in mixer.items()}
    return shapes | {f"mlp.{name}": shape for name, shape in official_ffn(c, moe).items()}


def official_attention(c, softmax):
    kv_heads = c.num_kv_heads if softmax else c.num_heads
    width = c.num_heads * c.head_dim
    rows = width + 2 * kv_heads * c.head_dim
    shapes = {"query_key_value.weight": (rows, c.hidden_size), "dense.weight": (c.hidden_size, width)}
    if c.qkv_bias:
        shapes["query_key_value.bias"] = (rows,)
    if c.out_bias:
        shapes["dense.bias"] = (c.hidden_size,)
    if c.qk_norm:
        shapes |= {"query_layernorm.weight": (c.head_dim,), "key_layernorm.weight": (c.head_dim,)}
    if not softmax:
        shapes |= {"g_proj.weight": (width, c.hidden_size), "g_norm.weight": (width,)}
    return shapes


def official_mla(c):
    queries = c.num_heads * (c.nope_dim + c.rope_dim)
    shapes = {
        "kv_a_proj_with_mqa.weight": (c.kv_lora_rank + c.rope_dim, c.hidden_size),
        "kv_a_layernorm.weight": (c.kv_lora_rank,),
        "kv_b_proj.weight": (c.num_heads * (c.nope_dim + c.v_dim), c.kv_lora_rank),
        "dense.weight": (c.hidden_size, c.num_heads * c.v_dim),
    }
    if c.q_lora_rank is None:
        shapes["q_proj.weight"] = (queries, c.hidden_size)
    else:
        shapes["q_a_proj.weight"] = (c.q_lora_rank, c.hidden_size)
        shapes["q_a_layernorm.weight"] = (c.q_lora_rank,)
        shapes["q_b_proj.weight"] = (queries, c.q_lora_rank)
    if c.qkv_bias:
        shapes |= {"kv_a_proj_with_mqa.bias": (c.kv_lora_rank + c.rope_dim,), "dense.bias": (c.hidden_size,)}
        if c.q_lora_rank is not None:
            shapes["q_a_proj.bias"] = (c.q_lora_rank,)
    return shapes


def official_ffn(c, moe):
    def swiglu(prefix, width):
        shapes = {f"{prefix}{name}_proj.weight": (width, c.hidden_size) for name in ("gate", "up")}
        return shapes | {f"{prefix}down_proj.weight": (c.hidden_size, width)}

    if not moe:
        return swiglu("", c.ffn_size)
    shapes = {"gate.weight": (c.num_experts, c.hidden_size), "gate.expert_bias": (c.num_experts,)}
    for expert in range(c.num_experts):
        shapes |= swiglu(f"experts.{expert}.", c.expert_ffn_size)
    return shapes | (swiglu("shared_experts.", c.shared_ffn_size) if c.shared_ffn_size else {})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "fields",
    [
        dict(),
        dict(num_layers=7, mtp_depth=2, first_dense_layers=3),
        dict(num_layers=6, first_dense_layers=0, qkv_bias=True, qk_norm=False, shared_ffn_size=0),
        dict(mtp_depth=1, out_bias=True, shared_ffn_size=24),
    ],
    ids=["plain", "remainder, dense and MTP", "biases of queries", "biases of outputs"],
)
def test_names_and_shapes_are_the_official(family, fields):
    config = tiny_config(family, **fields)
    found = {name: value.shape for name, value in hf_tensors(random_params(config), config).items()}
    assert found == official_shapes(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_place(family):
    """Each number of the parameters is once in the official tensors."""
    config = tiny_config(family, num_layers=7, mtp_depth=2, qkv_bias=True, out_bias=True)
    params, used = model_spec(config), 0
    counted = {}
    for name, leaf in named_leaves(params).items():
        size = int(np.prod(leaf.shape))
        counted[name] = np.arange(used, used + size, dtype=np.float64).reshape(leaf.shape)
        used += size
    tree = rebuild(params, counted)
    flat = np.concatenate([value.reshape(-1) for value in hf_tensors(tree, config).values()])
    np.testing.assert_array_equal(np.sort(flat), np.arange(used))


def rebuild(tree, leaves, path=""):
    if not isinstance(tree, dict):
        return leaves[path]
    return {key: rebuild(value, leaves, f"{path}/{key}" if path else key) for key, value in tree.items()}


def test_layers_of_stacked_groups_have_their_own_numbers():
    config = tiny_config(num_layers=9, layer_group_size=2, first_dense_layers=1, mtp_depth=2)
    params = random_params(config)
    for (segment, run), numbers in layer_numbers(config).items():
        params["segments"][segment][run]["mixer_norm"][:] = numbers[..., None]
    params["mtp"]["layer"]["mixer_norm"][:] = config.num_layers + np.arange(2)[:, None]
    tensors = hf_tensors(params, config)
    for number in range(config.num_layers + 2):
        assert (tensors[f"model.layers.{number}.input_layernorm.weight"] == number).all()


def tensor(params, config, name):
    return hf_tensors(params, config)[f"model.layers.{name}.weight"]


def test_rows_of_query_key_value_are_queries_then_keys_then_values():
    config = tiny_config("2.0", num_layers=1, first_dense_layers=0)
    params = random_params(config)
    (layer,) = params["segments"]["0"].values()
    mixer = {name: leaf[0, 0] for name, leaf in layer["mixer"].items()}
    x_D = np.random.default_rng(0).normal(size=config.hidden_size)
    wanted = [np.einsum("D,DHK->HK", x_D, mixer[name]).reshape(-1) for name in "qkv"]
    found = tensor(params, config, "0.attention.query_key_value") @ x_D
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=1e-12)


def test_output_projections_read_heads_then_dims():
    config = tiny_config(num_layers=2)
    params = random_params(config)
    out_HVD = params["segments"]["0"]["1_mla_moe"]["mixer"]["out"][0, 0]
    o_HV = np.random.default_rng(0).normal(size=out_HVD.shape[:2])
    found = tensor(params, config, "1.attention.dense") @ o_HV.reshape(-1)
    np.testing.assert_allclose(found, np.einsum("HV,HVD->D", o_HV, out_HVD), rtol=1e-12)


def test_mtp_projects_the_embedding_first_and_the_hidden_state_second():
    config = tiny_config(mtp_depth=1)
    params = random_params(config)
    embedded, hidden = np.random.default_rng(0).normal(size=(2, config.hidden_size))
    found = tensor(params, config, f"{config.num_layers}.eh_proj") @ np.concatenate([embedded, hidden])
    proj = params["mtp"]["proj"][0]
    np.testing.assert_allclose(found, embedded @ proj[0] + hidden @ proj[1], rtol=1e-12)


def test_leaves_of_one_tensor_follow_each_other_along_its_rows():
    config = tiny_config("linear-2.0", qkv_bias=True)
    for name in ("weight", "bias"):
        found = [
            s
            for s in tensor_mappings(model_spec(config), config)
            if s.name.endswith(f"layers.1.attention.query_key_value.{name}")
        ]
        assert [mapping.leaf.split("/")[-1][0] for mapping in found] == ["q", "k", "v"]
        assert [mapping.row for mapping in found] == [0, 32, 48]
