"""The platform that a program is traced for."""

import jax


def platform() -> str:
    """The platform ("cpu", "gpu" or "tpu") of the mesh in scope, else of the default device.

    The devices of a mesh may be absent, as in ahead-of-time compilation.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()
