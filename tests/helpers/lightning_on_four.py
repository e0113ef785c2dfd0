"""The Lightning layer's kernels, interpreted, on four simulated devices, compared with one.

Run as a program: the number of devices is fixed when JAX starts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.model.lightning import lightning_spec, lightning_tpu
from ling_jax.model.token_info import ContextSplit
from ling_jax.parallel.sharding import batch_sharding, make_mesh, num_shards, shardings
from pallas_kernels.lightning_attention.context import live_between
from tests.model.test_lightning_layer import CONFIG, layer_inputs

MESHES = [{"data": 2, "tensor": 2}, {"fsdp": 4}, {"context": 2, "tensor": 2}]  # two rows: four ways do not split them


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    params, x_BTD, info, log_decay, state, d_y_BTD = layer_inputs(CONFIG, 2, 388, True, jnp.float32)

    @functools.partial(jax.jit, static_argnames="sizes")  # compiled anew for each mesh
    def step(params, x_BTD, state, sizes):
        """Output, final state if rows are whole, gradients."""
        ranks = num_shards("tokens")
        split = None if ranks == 1 else ContextSplit(info.docs, live_between(info.docs, ranks))
        form = functools.partial(lightning_tpu, interpret=True, config=CONFIG, state_BHKV=state)

        def call(params, x_BTD):
            return form(params | {"log_decay": log_decay}, x_BTD, info._replace(split=split))

        (y_BTD, final), pull = jax.vjp(call, params, x_BTD)
        final = final if state is not None else jnp.zeros_like(final)
        return y_BTD, final, *pull((d_y_BTD, final))

    for sizes in MESHES:
        mesh, given = make_mesh(sizes), None if "context" in sizes else state
        wanted = step(params, x_BTD, given, None)
        placed = jax.device_put(params, shardings(lightning_spec(CONFIG), mesh))
        rows = jax.device_put(x_BTD, batch_sharding(mesh)) if "fsdp" not in sizes else x_BTD
        with jax.set_mesh(mesh):
            found = step(placed, rows, given, tuple(sizes.items()))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()), err_msg=str(sizes))
    print("equal")


if __name__ == "__main__":
    main()
