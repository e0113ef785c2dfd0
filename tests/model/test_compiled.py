"""What the compiled program promises: no logits of all tokens, and a compile time that layers do not multiply."""

import math
import re
import time

import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.config import model_config
from ling_jax.spec import abstract
from tests.helpers.tiny import tiny_config

ROWS, LENGTH, VOCAB = 2, 40, 997


def buffer_sizes(compiled) -> set[int]:
    """Elements of every array in a compiled program."""
    shapes = re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", compiled.as_text())
    return {math.prod(int(size) for size in shape.split(",")) for shape in shapes}


def compile_loss(config, rows, length):
    tokens = jax.ShapeDtypeStruct((rows, length), np.int32)
    step = jax.value_and_grad(lambda p, t, s: model.loss(p, t, t, config, segment_ids=s), has_aux=True)
    return jax.jit(step).lower(abstract(model.model_spec(config)), tokens, tokens).compile()


def small(loss_chunk):
    """One layer: its buffers are far smaller than the logits."""
    return tiny_config(vocab_size=VOCAB, num_layers=1, first_dense_layers=1, loss_chunk=loss_chunk, remat="full")


def test_the_logits_of_all_tokens_are_never_in_memory():
    sizes = buffer_sizes(compile_loss(small(loss_chunk=8), ROWS, LENGTH))
    assert ROWS * 8 * VOCAB in sizes  # one chunk's
    assert max(sizes) < ROWS * LENGTH * VOCAB


def test_the_search_for_logits_finds_them_where_they_are():
    assert ROWS * LENGTH * VOCAB in buffer_sizes(compile_loss(small(loss_chunk=LENGTH), ROWS, LENGTH))


@pytest.mark.slow
def test_eighty_layers_compile_as_fast_as_sixteen():
    """The same number of layer bodies: two segments, dense and MoE, Lightning and softmax, MTP."""
    seconds = {}
    for layers in (16, 80):
        config = model_config(
            "ling-2.6-1t", num_layers=layers, vocab_size=64, hidden_size=16, num_heads=2, head_dim=8, num_norm_groups=2,
            rotary_dim=4, q_lora_rank=8, kv_lora_rank=8, nope_dim=8, rope_dim=4, v_dim=8, ffn_size=16,
            num_experts=8, top_k=2, num_expert_groups=2, top_groups=1, expert_ffn_size=8, shared_ffn_size=8,
        )  # fmt: skip
        start = time.process_time()
        compile_loss(config, 1, 128)
        seconds[layers] = time.process_time() - start
    print("seconds of CPU to trace and compile, by layers:", {k: round(v, 1) for k, v in seconds.items()})
    assert seconds[80] <= 1.5 * seconds[16], seconds
