"""Which platform a program is traced for."""

import jax


def platform() -> str:
    """cpu, gpu or tpu: that of the mesh in scope, which need not be of this machine, else of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()
