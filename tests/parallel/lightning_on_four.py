"""The Lightning layer's kernels, interpreted, on four simulated devices, compared with one.

Run as a program: the number of devices is fixed when JAX starts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.model.lightning import kernel_form, lightning_spec
from ling_jax.parallel.sharding import batch_sharding, make_mesh, shardings
from tests.model.test_lightning_layer import CONFIG, layer_inputs

MESHES = [{"data": 2, "tensor": 2}, {"fsdp": 4}]  # two rows: four ways do not split them


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    params, x_BTD, sequence, log_decay, state, d_y_BTD = layer_inputs(CONFIG, 2, 389, True, jnp.float32)

    @functools.partial(jax.jit, static_argnames="sizes")  # compiled anew for each mesh
    def step(params, x_BTD, sizes):
        form = functools.partial(kernel_form, interpret=True)
        call = lambda params, x_BTD: form(params, x_BTD, sequence, log_decay, state, CONFIG)  # noqa: E731
        (y_BTD, final), pull = jax.vjp(call, params, x_BTD)
        return y_BTD, final, *pull((d_y_BTD, final))

    wanted = step(params, x_BTD, None)
    for sizes in MESHES:
        mesh = make_mesh(sizes)
        placed = jax.device_put(params, shardings(lightning_spec(CONFIG), mesh))
        rows = jax.device_put(x_BTD, batch_sharding(mesh)) if 2 % (4 // sizes.get("tensor", 1)) == 0 else x_BTD
        with jax.set_mesh(mesh):
            found = step(placed, rows, tuple(sizes.items()))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()), err_msg=str(sizes))
    print("equal")


if __name__ == "__main__":
    main()
