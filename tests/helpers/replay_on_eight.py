"""Replayed experts on meshes of eight simulated devices, compared with one device. Run as a program: the number of
devices is fixed when JAX starts."""

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax import spec
from ling_jax.model import model_spec
from ling_jax.model.recorded_experts import check_experts
from ling_jax.model.transformer import chosen_experts, hidden_states, make_token_info
from ling_jax.parallel.sharding import batch_sharding, make_mesh, shardings
from tests.helpers.eight_devices import TOLERANCES, batch_of
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

MESHES = [
    {"data": 8},
    {"expert": 8},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 2, "context": 4},
    {"fsdp": 2, "expert": 2, "context": 2},
]


def recorded_experts(config, shape_BT: tuple[int, ...]) -> np.ndarray:
    """Random choices that a router might make; one token in four has none."""
    rng = np.random.default_rng(0)
    shape_BTL = (*shape_BT, config.num_layers - config.first_dense_layers)
    of_group = config.num_experts // config.num_expert_groups
    groups = rng.permuted(np.tile(np.arange(config.num_expert_groups), (*shape_BTL, 1)), axis=-1)
    members = groups[..., : config.top_groups, None] * of_group + np.arange(of_group)
    experts = rng.permuted(members.reshape(*shape_BTL, -1), axis=-1)[..., : config.top_k]
    experts[rng.random(shape_BT) < 0.25] = -1
    check_experts(experts, config)
    return experts.astype(np.int16)


def main() -> None:
    config = tiny_config(num_heads=4, num_kv_heads=4, mtp_depth=1, compute_dtype="float64")
    params, batch = random_params(config), batch_of(config)
    tokens, segment_ids = batch["tokens"], batch["segment_ids"]
    experts = recorded_experts(config, tokens.shape)
    weight_BTD = np.random.default_rng(1).normal(size=(*tokens.shape, config.hidden_size))

    def total(params, tokens, segment_ids, experts):
        info = make_token_info(tokens, config, None, segment_ids)
        hidden_BTD, mtp_BTD, routers = hidden_states(params, tokens, info, config, experts=experts)
        live_BT1 = (segment_ids > 0)[..., None]
        value = sum(jnp.sum(weight_BTD * jnp.where(live_BT1, x_BTD, 0)) for x_BTD in (hidden_BTD, *mtp_BTD))
        return value, chosen_experts(routers, config)

    step = quick_jit(jax.value_and_grad(total, has_aux=True))
    (wanted, chosen), wanted_grads = jax.device_get(step(params, tokens, segment_ids, experts))
    live, recorded = segment_ids > 0, experts[..., 0, 0] >= 0
    np.testing.assert_array_equal(chosen[recorded], experts[recorded])
    wanted_grads, (relative, of_norm) = spec.named_leaves(wanted_grads), TOLERANCES["float64"]
    for sizes in MESHES:
        mesh = make_mesh(sizes)
        placed = jax.device_put(params, shardings(model_spec(config), mesh))
        rows = jax.device_put((tokens, segment_ids, experts), batch_sharding(mesh))
        with jax.set_mesh(mesh):
            (found, found_chosen), grads = jax.device_get(step(placed, *rows))
        np.testing.assert_allclose(found, wanted, rtol=relative)
        np.testing.assert_array_equal(found_chosen[live], chosen[live])
        for name, grad in spec.named_leaves(grads).items():
            error = np.linalg.norm(grad - wanted_grads[name])
            assert error <= of_norm * np.linalg.norm(wanted_grads[name]), (sizes, name, error)
        print("equal", sizes, flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    main()
