"""The kernel between a Lightning layer's projections, interpreted, equals the layer in jax.numpy, with gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax import spec
from ling_jax.config import model_config
from ling_jax.model.layer_cache import LayerCache
from ling_jax.model.lightning import (
    DECODES,
    lightning_decode,
    lightning_spec,
    lightning_tpu,
    lightning_xla,
    log_decays,
    uses_layer_kernel,
)
from ling_jax.model.rope import rope_table
from ling_jax.model.token_info import TokenInfo
from pallas_kernels.lightning_attention import document_ids, rotation_lanes

CONFIG = model_config("tiny-2.6", num_heads=4, head_dim=16, num_norm_groups=2, rotary_dim=8, hidden_size=32)


def layer_inputs(config, batch, length, packed, dtype):
    rng = np.random.default_rng(0)
    # Weights of zero are among them: nothing may be divided by them.
    leaf = lambda declared: jnp.asarray(rng.normal(0.2, 0.5, declared.shape).round(1), jnp.float32)  # noqa: E731
    params = spec.tree_map(leaf, lightning_spec(config))
    x_BTD, d_y_BTD = jnp.asarray(rng.normal(size=(2, batch, length, config.hidden_size)), dtype)
    ids = np.repeat(rng.integers(0, 3, (batch, length)), 40, axis=1)[:, :length]
    rope = rope_table(np.arange(length)[None], config.rotary_dim, config)
    info = TokenInfo(
        docs=document_ids(ids) if packed else None, live=None, places=None, last_visible=None, rope=rope,
        rotation=rotation_lanes(*rope, config.head_dim), latent_rope=None,
    )  # fmt: skip
    state = jnp.asarray(rng.normal(size=(batch, config.num_heads, config.head_dim, config.head_dim)), jnp.float32)
    return params, x_BTD, info, jnp.asarray(log_decays(config)[0], jnp.float32), state, d_y_BTD


def outputs_and_gradients(form, config, params, x_BTD, info, log_decay, state, d_y_BTD):
    """{name: array}: y, state, and the gradients of a sum of both by parameters, input and initial state."""

    @jax.jit
    def run(params, x_BTD, state):
        def total(params, x_BTD, state):
            y_BTD, final = form(params | {"log_decay": log_decay}, x_BTD, info, state, config)
            return jnp.sum((y_BTD * d_y_BTD).astype(jnp.float32)) + jnp.sum(jnp.sin(final)), (y_BTD, final)

        return jax.grad(total, (0, 1, 2), has_aux=True)(params, x_BTD, state)

    (d_params, d_x, d_state), (y_BTD, final) = run(params, x_BTD, state)
    return {"y": y_BTD, "state": final, "dx": d_x, "d_state": d_state} | {f"d_{n}": d for n, d in d_params.items()}


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_kernel_equals_jax_numpy(packed):
    inputs = layer_inputs(CONFIG, 1, 389, packed, jnp.float32)
    with jax.default_matmul_precision("highest"):
        expected = outputs_and_gradients(lightning_xla, CONFIG, *inputs)
        found = outputs_and_gradients(functools.partial(lightning_tpu, interpret=True), CONFIG, *inputs)
    for name, value in expected.items():
        scale = max(1.0, float(jnp.max(jnp.abs(value))))
        np.testing.assert_allclose(found[name], value, rtol=0, atol=5e-5 * scale, err_msg=name)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("length", [1, 3])
def test_few_tokens_on_a_stack_of_states_equal_jax_numpy(length, platform):
    params, x_BTD, info, log_decay, state, _ = layer_inputs(CONFIG, 3, length, False, jnp.float32)
    info = info._replace(docs=jnp.ones((3, length), jnp.int32).at[1].set(0))
    stack = jnp.stack([state + i for i in range(6)]).reshape(2, 3, *state.shape)
    cache = LayerCache({"state": stack}, (1, 2))
    params |= {"log_decay": log_decay}
    expected, state = lightning_xla(params, x_BTD, info, stack[1, 2], CONFIG)
    decode = functools.partial(DECODES[platform][0], interpret=True)
    found, cache = lightning_decode(params, x_BTD, info, cache, CONFIG, decode)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(cache.leaves["state"], stack.at[1, 2].set(state), atol=2e-5)


def test_platforms_without_kernels_use_jax_numpy():
    assert not uses_layer_kernel((1, 8192), model_config("ling-2.6-flash"))


@pytest.mark.slow
def test_bfloat16_errs_no_more_than_jax_numpy():
    """Against float32; 8 heads of 128 in two norm groups, the block that is timed."""
    config = model_config("tiny-2.6", num_heads=16, head_dim=128, num_norm_groups=4, rotary_dim=64, hidden_size=64)
    params, x_BTD, *rest, d_y_BTD = layer_inputs(config, 1, 389, True, jnp.float32)
    wide = outputs_and_gradients(lightning_xla, config, params, x_BTD, *rest, d_y_BTD)
    narrow = (params, x_BTD.astype(jnp.bfloat16), *rest, d_y_BTD.astype(jnp.bfloat16))
    plain = outputs_and_gradients(lightning_xla, config, *narrow)
    kernel = outputs_and_gradients(functools.partial(lightning_tpu, interpret=True), config, *narrow)
    for name, value in wide.items():
        error = lambda found, value=value, name=name: float(  # noqa: E731
            jnp.sqrt(jnp.mean(jnp.square(found[name].astype(jnp.float32) - value)) / jnp.mean(jnp.square(value)))
        )
        assert error(kernel) <= 1.1 * error(plain) + 1e-3, (name, error(kernel), error(plain))
